"""The networks of the world model: autoencoder, denoiser, segmenter, localiser and survival network."""
