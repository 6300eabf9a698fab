"""Which solve, from static numbers alone."""

from typing import Literal, NamedTuple, get_args

from ..linearization import Cost

Kind = Literal["primal", "dual", "qr", "svd", "cg", "minres", "lsmr", "nystrom", "sketch"]
Solve = Literal["auto", "primal", "dual", "qr", "svd", "cg", "minres", "lsmr", "nystrom", "sketch"]
SOLVES: tuple[Kind, ...] = get_args(Kind)  # `DampedSolve.choice` is an index of it: append only

# Rates relative to a matrix product, on one core (benchmarked with jax 0.10 on an AMD EPYC, n = 128 to 3000).
FACTOR_RATE = 0.5  # Cholesky, QR, SVD
PRODUCT_RATE = 0.2  # products with one vector wait for the memory

DEFAULT_MEMORY = 2 * 2**30  # bytes
MATRICES = 3  # square matrices that a direct solve holds at once: the sum, the factor, a copy of LAPACK
NYSTROM_STEPS, PLAIN_STEPS = 30, 300  # expected, with and without a preconditioner
QR_PREMIUM = 12  # what the digits of a QR are worth in float32; every dense Jacobian is below it
LEAST_RANK, MOST_RANK = 100, 500  # with 50 late iterations became 123 in place of 6 (2-D Poisson, N = 1020, P = 2545)
USEFUL_RANK = 20  # below it no preconditioner is made
# No solve factors in float32 and refines in float64: on a CPU it was slower or equal for every n from 500 to 3000 (the
# triangular solves of the refinement eat what Cholesky saves, itself a small part beside J J^T), and the float32
# factorisation fails once lambda < 1e-5 of the diagonal.
PATIENCE = 10  # a direct solve is certain, the number of iterations a guess


class Choice(NamedTuple):
    """A solve and its predicted cost.

    **Fields:** `solve`, never `"auto"`; `dual`, whether its matrix acts on residuals (`N`) or on parameters (`P`);
    `flops`, for the factorisation and one right-hand side, at the rate of a matrix product; `rank` of the sketch.
    """

    solve: Kind
    dual: bool
    flops: float
    rank: int


def choose(
    count: int,
    size: int,
    cost: Cost,
    itemsize: int,
    *,
    solve: Solve = "auto",
    residual_form: bool = True,
    memory: int = DEFAULT_MEMORY,
    rank: int | None = None,
) -> Choice:
    """The solve for `(J^T J + lambda D) s = b` and its predicted cost.

    Candidates for `"auto"`: `"primal"` and, for right-hand sides `J^T y`, `"dual"`, as far as three of their matrices
    fit the memory; the cheaper one. In float32 `"qr"` in its place, where it costs at most twelve times as much: normal
    equations leave float32 three or four digits (the heat equation, 337 parameters, 150 Levenberg-Marquardt steps:
    relative error 1.5e-4 by Cholesky). If none fits, or if the iteration is predicted ten times cheaper, conjugate
    gradients with a Nystrom preconditioner whose sketch fits the memory; with no room for 20 vectors `"lsmr"`, or for
    other right-hand sides `"cg"`. Never `"sketch"`, which solves another system.

    **Arguments:**

    - `count`, `size`: `N` residuals, `P` parameters.
    - `cost`: of the Jacobian; its widths and representation count through it.
    - `itemsize`: bytes a number.
    - `solve`: a solve other than `"auto"` is taken as it is, and only its cost predicted.
    - `residual_form`: whether right-hand sides are `J^T y`; Woodbury's identity, the dual form of other ones, loses
      `eps / lambda` of the digits.
    - `memory`: bytes for the matrices of the solve.
    - `rank`: of the Nystrom sketch; by default 5 % of the unknowns, between 100 and 500, as memory allows; for
      `"sketch"` 10 % and at least 100.

    **Returns:** a `Choice`.

    **Example:** `choose(1000, 10**6, jacobian.cost, 8).solve  # "dual"`
    """
    small, large = min(count, size), max(count, size)
    dual = residual_form and (count < size or solve == "sketch")
    unknowns = count if dual else size
    room = memory // (MATRICES * unknowns * itemsize)  # vectors of a sketch
    if rank is None:
        wanted = unknowns // 10 if solve == "sketch" else min(unknowns // 20, MOST_RANK)
        rank = min(max(LEAST_RANK, wanted), max(room, 1))
    rank = min(rank, unknowns)

    def iterative(expected: int) -> float:
        return min(expected, unknowns) * (cost.product / PRODUCT_RATE)

    sketching = rank * cost.product + 12 * unknowns * rank**2 / FACTOR_RATE
    flops: dict[Kind, float] = {
        "primal": cost.gram + size**3 / 3 / FACTOR_RATE,
        "dual": cost.kernel + count**3 / 3 / FACTOR_RATE,
        "qr": cost.rows + 4 * (large + small) * small**2 / FACTOR_RATE,
        "svd": cost.rows + (6 * large * small**2 + 20 * small**3) / FACTOR_RATE,
        "cg": iterative(PLAIN_STEPS),
        "minres": iterative(PLAIN_STEPS),
        "lsmr": iterative(PLAIN_STEPS),
        "nystrom": sketching + iterative(NYSTROM_STEPS),
        "sketch": sketching,
    }

    def fits(numbers: int) -> bool:
        return numbers * itemsize <= memory

    def automatic() -> Kind:
        direct: list[Kind] = ["primal"] if fits(MATRICES * size**2) else []
        if residual_form and fits(MATRICES * count**2):
            direct.append("dual")
        matrix_free: Kind = "nystrom" if rank >= min(USEFUL_RANK, unknowns) else "lsmr" if residual_form else "cg"
        if not direct:
            return matrix_free
        best = min(direct, key=lambda kind: flops[kind])  # the primal one on a tie
        if flops[best] > PATIENCE * flops[matrix_free]:
            return matrix_free
        orthogonal = itemsize <= 4 and dual == (count < size) and fits(3 * (count + size) * small)
        return "qr" if orthogonal and flops["qr"] <= QR_PREMIUM * flops[best] else best

    kind = automatic() if solve == "auto" else solve
    return Choice(kind, kind == "dual" or (kind != "primal" and dual), float(flops[kind]), rank)
