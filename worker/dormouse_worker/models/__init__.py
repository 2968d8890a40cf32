"""What a function takes and gives, and why a model is not served."""
