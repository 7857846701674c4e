"""Tests of the node pack inside a real ComfyUI, and what sets that ComfyUI up."""
