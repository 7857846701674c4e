"""Tuned references: image embeddings of one's own subject, improved through the frozen encoder and U-Net."""
