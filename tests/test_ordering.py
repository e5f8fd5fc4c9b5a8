"""Orders by keys: what clusters are, and that a study can ask for them."""

import pytest
import torch

from retcon.run.order import arranged, clusters


def bunches(seed: int, groups: int = 4, each: int = 5):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, 20, generator=g, dtype=torch.float64)
    labels = torch.arange(groups * each) % groups
    keys = centres[labels] + 0.05 * torch.randn(len(labels), 20, generator=g, dtype=torch.float64)
    scale = torch.rand(len(labels), 1, generator=g, dtype=torch.float64) + 0.5
    return keys * scale, labels


@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_those_of_the_directions(seed):
    keys, labels = bunches(seed)
    found = clusters(keys, 4)
    assert len({(int(a), int(b)) for a, b in zip(labels, found, strict=True)}) == 4
    assert torch.equal(found, clusters(keys, 4))


@pytest.mark.parametrize("seed", range(5))
def test_clustered_brings_together_and_dispersed_takes_apart(seed):
    keys, labels = bunches(seed)

    def neighbours(order):
        placed = labels[arranged(keys, order)]
        return int((placed[1:] == placed[:-1]).sum())

    for order in ("clustered", "dispersed"):
        assert sorted(arranged(keys, order)) == list(range(20))
    assert neighbours("clustered") == 16 and neighbours("dispersed") <= 3
    assert arranged(keys[:1], "clustered") == [0]
