"""Training of denoising networks, their substeps, and predictors."""
