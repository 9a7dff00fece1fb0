"""Where the experts' weights are while a run needs them: the value that the plan decides and the build carries out.

resident: both experts stay on the device. experts: one at a time, the other waits on the host and arrives while the
first one finishes. stream: the first blocks of each expert stay on the device, the last `streamed_blocks` pass through
two buffers, each arriving while the one before it computes.

compute: weights wait and lie in the dtype of the products. file: linear layers keep the codes of their file, and are
decoded before each product.
"""

from dataclasses import dataclass
from typing import Literal

PlacementPolicy = Literal["resident", "experts", "stream"]
WeightStorage = Literal["compute", "file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A placement of both experts; `streamed_blocks` is 0 unless the policy is "stream"."""

    policy: PlacementPolicy
    streamed_blocks: int = 0
    storage: WeightStorage = "compute"
