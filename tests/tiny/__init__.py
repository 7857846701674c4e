"""Models small enough to be made on the fly, with random weights, for tests, benchmarks and the demo.

kosmos_file: Kosmos-G and its vocabulary; stable_diffusion: as diffusers reads it; comfyui_files: as ComfyUI reads it;
clip: CLIP, its tokenizer, DINO; construct_models: what data construction runs; drawings: pictures of made-up subjects.
"""
