"""The claims of "Is Bigger Edit Batch Size Always Better?" (arXiv:2405.00664), and two more.

The paper edits Llama-3-8B with ROME, MEMIT and EMMET, and scores after every batch. (a) to (e) are
its claims; (f) asks what batch size is, (g) whether the answer depends on the score.
"""

from retcon.replications.batch_size import batch, by_score, factors, layer, sequence, single

__all__ = ["batch", "by_score", "factors", "layer", "sequence", "single"]
