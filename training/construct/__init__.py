"""Pictures in, compositional training samples out (Kosmos-G, arXiv 2310.02992, section 3.1).

python -m training.construct --input PATH --output DIR --config training/configs/construct/paper.yaml
"""
