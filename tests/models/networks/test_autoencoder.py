from __future__ import annotations

import torch

from models.networks.autoencoder import Autoencoder
from models.networks.preset import Preset
from models.networks.quantiser import EmaQuantiser
from models.weights import WorldModel


def test_quantiser_finds_separate_clusters_and_revives_dead_codes() -> None:
    torch.manual_seed(0)
    centres = torch.randn(8, 4) * 5
    quantiser = EmaQuantiser(codes=16, dim=4, decay=0.9)
    for _ in range(40):
        z = (centres[torch.randint(8, (512,))] + 0.05 * torch.randn(512, 4)).t()[None]
        codes, perplexity = quantiser(z)
    assert float(perplexity) > 6  # 8 clusters; a collapsed codebook has 1
    assert float((codes - z).square().mean()) < 0.02


def test_quantiser_recovers_from_a_collapsed_codebook() -> None:
    torch.manual_seed(0)
    quantiser = EmaQuantiser(codes=16, dim=4, decay=0.9)
    quantiser.initialised.fill_(1.0)
    quantiser.embedding.fill_(100.0)
    quantiser.ema_sum.fill_(100.0)
    first = quantiser(torch.randn(1, 4, 512))[1]
    for _ in range(30):
        last = quantiser(torch.randn(1, 4, 512))[1]
    assert float(first) < 1.01
    assert float(last) > 8


def test_quantiser_picks_the_nearest_code_and_rests_in_evaluation() -> None:
    torch.manual_seed(0)
    quantiser = EmaQuantiser(codes=7, dim=3).eval()
    before = quantiser.embedding.clone()
    flat = torch.randn(50, 3)
    brute = torch.stack([((quantiser.embedding - v) ** 2).sum(1).argmin() for v in flat])
    assert torch.equal(quantiser.nearest(flat), brute)
    quantiser(flat.t()[None])
    assert torch.equal(quantiser.embedding, before)


def test_shapes_range_and_normalised_latents(model: WorldModel) -> None:
    x = torch.rand(3, 1, 32, 32, 32) * 2 - 1
    network = Autoencoder(model.preset.autoencoder).eval()
    with torch.no_grad():
        raw = network.encode(x)
        values = raw.transpose(0, 1).flatten(1)
        network.set_latent_statistics(values.mean(1), values.std(1))
        z = network.encode(x)
        image = network.decode(z)
    assert z.shape == (3, network.latent_channels, 8, 8, 8)
    assert image.shape == x.shape
    assert float(image.abs().max()) <= 1.0
    torch.testing.assert_close(z.transpose(0, 1).flatten(1).std(1), torch.ones(4), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(image, network.decoder(raw).clamp(-1, 1), rtol=1e-3, atol=1e-4)


def test_decoding_from_codes_only_gives_what_the_codebook_holds(tiny: Preset) -> None:
    sizes = tiny.autoencoder.model_copy(update={"decode_codes": True})
    torch.manual_seed(0)
    network = Autoencoder(sizes).eval()
    z = torch.randn(1, 4, 4, 4, 4)
    with torch.no_grad():
        codes = network.quantise(z)[0]
        assert torch.equal(network.decode(z), network.decode(codes))
        assert not torch.equal(network.decoder(z), network.decoder(codes))


def test_straight_through_gradient_reaches_the_encoder(tiny: Preset) -> None:
    torch.manual_seed(0)
    network = Autoencoder(tiny.autoencoder)
    out = network(torch.randn(2, 1, 16, 16, 16))
    out.image.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.encoder.parameters())
    assert float(out.commitment.detach()) > 0
