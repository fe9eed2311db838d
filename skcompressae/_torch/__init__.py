"""Everything that imports torch: devices, products, the model on an accelerator, the training loop."""
