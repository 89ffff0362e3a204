"""The model card: what the networks are measured to do on unseen synthetic patients, and against which targets."""
