"""The types of the arrays that pass between the service's modules. Does not know what their values mean."""

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Prints = npt.NDArray[np.uint64]  # fingerprints of inputs
Flags = npt.NDArray[np.bool_]
