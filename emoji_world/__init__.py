"""The emoji world: a small Stable Diffusion and a small Kosmos-G that two CPU cores train from nothing within a day.

Its pictures are 64 pixels wide and show one or two of 34 nouns, each in four looks and two hues, on plain backgrounds,
with exact captions and masks. What a picture must show is therefore known, and what was learned can be counted. It is
an example of the whole training; `assets/world` holds its weights, LOG.md says how they were made and what they give.

From nothing to these weights, after `pip install -e ".[train,world]"` (LOG.md has every option):

    python -m emoji_world.atlas           sprites of the nouns, from npm packages (assets/world holds them already)
    python -m emoji_world.train next      one piece of the next training, again and again to the end
    python -m emoji_world.single_file     the Stable Diffusion as a file for ComfyUI
    python -m emoji_world.benchmark       what was learned, in minutes; `evaluate` is the longer table
    python -m emoji_world.showcase        README's pictures

`train` calls autoencoder, text_encoder (CLIP), diffusion (U-Net), training_data, `training.run` with the files of
configs/, and image_words (vision tower and resampler, on the words of stage 1); what they share is in `pieces`, what
each has to reach in `gates`. `open_atlas` and `open_scenes` are a larger world, of 625 nouns.

Between the runs `python -m training.export` makes one file of each, and `python -m emoji_world.probe` tells in a minute
what a stage reads from references. The other modules: `scenes` draws pictures with captions and says what is held out
from which stage, `sampling` makes pictures from conditions, `generator` from prompts, `features` compares what
pictures show, `judge` names it, `own_subjects` asks what tuned references and adapters give (`own_subject_rows` says in
which rows, `own_photographs` makes what they are tuned to), `sheets` shows pictures.
"""
