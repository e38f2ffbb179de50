"""Text: tokenizers, whether two models read the same tokens, and generation."""
