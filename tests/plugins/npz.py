"""NPZ: a patch as arrays of NumPy, for programs that know neither torch nor safetensors."""

import numpy as np

from retcon.patch.export import Exported, ExportTable, Job, export_form

FILE = "patch.npz"


@export_form("npz")
def npz(job: Job, *, dense: bool = False) -> Exported:
    """One file with the factors of each layer.

    dense: ΔW itself in place of its factors.
    """
    arrays: dict[str, np.ndarray] = {}
    for layer, delta in job.patch.deltas.items():
        if dense:
            arrays[f"{layer}"] = delta.dense().numpy()
        else:
            arrays |= {f"{layer}.left": delta.left.numpy(), f"{layer}.right": delta.right.numpy()}
    np.savez(job.folder / FILE, **arrays)
    shapes = [[name, " × ".join(map(str, array.shape))] for name, array in arrays.items()]
    return Exported(
        tables=[ExportTable("Arrays", ["name", "shape"], shapes)], record={"arrays": list(arrays)}
    )
