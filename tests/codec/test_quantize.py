import torch

from specgen.codec.quantize import ResidualQuantizer, k_means, nearest


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def started(
    codebooks: int = 3, card: int = 16, dim: int = 4
) -> tuple[ResidualQuantizer, torch.Tensor]:
    vectors = torch.randn(512, dim, generator=generator())
    quantizer = ResidualQuantizer(codebooks, card, dim, decay=0.9)
    quantizer.start(vectors, generator())
    return quantizer, vectors


def test_nearest_agrees_with_the_distances() -> None:
    vectors, entries = torch.randn(50, 4, generator=generator()), torch.randn(9, 4)
    assert torch.equal(nearest(vectors, entries), torch.cdist(vectors, entries).argmin(1))


def test_k_means_finds_separated_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = centres.repeat(40, 1) + 0.01 * torch.randn(120, 2, generator=generator())
    found = k_means(vectors, 3, 20, generator(3))
    assert torch.cdist(centres, found).min(1).values.max() < 0.1


def test_every_codebook_lowers_the_error() -> None:
    quantizer, vectors = started()
    codes = quantizer.encode(vectors[None])
    assert codes.shape == (1, 3, 512)
    errors = []
    for k in range(1, 4):
        part = sum(quantizer.entries[i][codes[0, i]] for i in range(k))
        errors.append((vectors - part).square().mean().item())
    assert vectors.square().mean() > errors[0] > errors[1] > errors[2]
    assert torch.allclose(quantizer.decode(codes)[0], part)


def test_gradients_pass_straight_through() -> None:
    quantizer, vectors = started()
    latents = vectors[None].clone().requires_grad_()
    quantised, codes, commitment = quantizer(latents)
    assert torch.allclose(quantised, quantizer.decode(codes), atol=1e-6)
    (gradient,) = torch.autograd.grad(quantised.sum(), latents, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(gradient))
    (pull,) = torch.autograd.grad(commitment, latents)
    assert (pull * (latents - quantised)).sum() > 0


def test_entries_follow_the_data() -> None:
    quantizer, vectors = started(codebooks=1)
    shifted = vectors[None] + 0.3
    before = (quantizer.decode(quantizer.encode(shifted)) - shifted).square().mean()
    for _ in range(100):
        quantizer.adapt(shifted, quantizer.encode(shifted))
    after = (quantizer.decode(quantizer.encode(shifted)) - shifted).square().mean()
    assert after < 0.9 * before
    assert abs(quantizer.counts.sum().item() - 1) < 1e-4


def test_dead_entries_come_back() -> None:
    quantizer, vectors = started(codebooks=1)
    quantizer.entries[0, :5] = 1e3
    quantizer.counts[0, :5] = 0.0
    assert quantizer.revive(vectors[None], generator()) >= 5
    assert quantizer.entries.abs().max() < 1e2
    assert quantizer.revive(vectors[None], generator()) == 0
