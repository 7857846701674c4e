"""A small world of emoji that two CPU cores can learn: its pictures, its Stable Diffusion, and what is measured on it.

atlas                               sprites of the same nouns in several looks, made from npm packages
scenes                              pictures with captions, exact masks and known identities; what is held out from what
data                                the data of the three stages, as WebDataset tars
autoencoder, text_encoder, diffusion   the small Stable Diffusion that is frozen later
single_file                         that Stable Diffusion as a ComfyUI checkpoint
sampling, features, evaluate        the table that says what was learned
"""
