"""The four networks of the world model: autoencoder, denoiser with its action encoder, segmenter, survival network."""
