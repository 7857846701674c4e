"""The emoji world: a small Stable Diffusion and a small Kosmos-G that two CPU cores train from nothing within a day.

Its pictures are 64 pixels wide and show one or two of 34 nouns, each in four looks and two hues, on plain backgrounds,
with exact captions and masks. What a picture must show is therefore known, and what was learned can be counted. It is
an example of the whole training; `assets/world` holds its weights, LOG.md says how they were made and what they give.

From nothing to these weights, after `pip install -e ".[train,world]"` (LOG.md has every option):

    python -m emoji_world.atlas           sprites of the nouns, from npm packages (assets/world holds them already)
    python -m emoji_world.autoencoder     the autoencoder of the small Stable Diffusion
    python -m emoji_world.text_encoder    its CLIP
    python -m emoji_world.diffusion       its U-Net, and all three as a diffusers folder
    python -m emoji_world.training_data   tars and vocabulary for the three stages
    python -m training.run                stage 1, with configs/lm.yaml, then lm-words.yaml laid over it
    python -m emoji_world.image_words     the vision tower and the resampler, on the words of stage 1
    python -m training.run                stages 2 and 3, with configs/align.yaml and configs/instruct.yaml
    python -m emoji_world.single_file     the Stable Diffusion as a file for ComfyUI
    python -m emoji_world.evaluate        the table of what was learned
    python -m emoji_world.showcase        README's pictures

Between the runs `python -m training.export` makes one file of each, and `python -m emoji_world.probe` tells in a minute
what a stage reads from references. The other modules: `scenes` draws pictures with captions and says what is held out
from which stage, `sampling` makes pictures from conditions, `generator` from prompts, `features` compares what
pictures show, `judge` names it, `own_subjects` asks what tuned references and adapters give (`own_subject_rows` says in
which rows), `sheets` shows pictures.
"""
