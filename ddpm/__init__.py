"""Conditional denoising diffusion for super-resolution: schedule, UNet, samplers, training, checkpoints."""
