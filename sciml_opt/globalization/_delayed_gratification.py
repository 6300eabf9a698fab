"""Control of the Levenberg-Marquardt damping by two factors."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Scalar


def delayed_gratification_update(
    damping: Scalar, accepted: Bool[Array, ""], size: Scalar, raised: float = 2.0, lowered: float = 3.0
) -> Scalar:
    """The damping `lambda` after a trial: raised a little by a rejection, lowered more by an acceptance.

        accepted:  lambda /= lowered,       rejected:  lambda *= raised

    So lambda stays near the least one that is still accepted, in small steps, where the usual factor 10 jumps about it;
    and a step that is not as good as the model said still lowers it, which Nielsen's rule would not.

    **Arguments:** `damping` is lambda; `size` is its unit, as in `nielsen_update`; `raised`, `lowered` are the factors,
    2 and 3 (1.5 and 5 for large problems).

    **Returns:** the new lambda, kept inside `[1e-20, 1e6] * size`.

    Source: Transtrum and Sethna, arXiv:1201.5885; the name from Transtrum, Machta and Sethna, arXiv:1010.1449.
    """
    return jnp.clip(jnp.where(accepted, damping / lowered, damping * raised), 1e-20 * size, 1e6 * size)
