"""Comparison with the published tables, and live with the PyTorch release of PSAQ-ViT."""
