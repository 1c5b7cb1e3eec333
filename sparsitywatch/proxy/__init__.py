"""What a model is worth: frozen batches and a value per example, asked apart from the training."""
