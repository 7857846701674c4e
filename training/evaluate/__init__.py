"""Evaluation: DreamBench and two-subject lists, COCO FID, and pages that compare models.

Every command makes pictures and scores them in two steps that can run apart, goes on after a kill at any moment with
--resume, and splits its work over the processes that torchrun starts. See `python -m training.evaluate --help`.
"""
