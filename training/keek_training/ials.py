"""iALS by the package `implicit`: the baseline, and what towers may begin as."""

from typing import Any

from scipy import sparse
from threadpoolctl import threadpool_limits

from keek_server.errors import SetupError
from keek_server.towers.contract import DIMENSION


def fitted_ials(
    met: sparse.csr_matrix, *, iterations: int, alpha: float, regularization: float, seed: int, who: str
) -> Any:
    """`implicit`'s model with DIMENSION factors.

    Args:
        met: float32 [users, videos]: 1 where a user met a video.
        iterations: Of both sides.
        alpha: What a met video weighs beside one that was not met.
        regularization: L2 of both sides, on the scale of `alpha`.
        seed: Of the first factors.
        who: Wants it, as the error says.

    Raises:
        SetupError: When `implicit` is not installed.
    """
    try:
        from implicit.cpu.als import AlternatingLeastSquares
    except ImportError as error:
        raise SetupError(f"{who} the extra keek[training] ({error})") from error

    # Its own threads and those of BLAS would get in each other's way, of which it warns when it is made.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=DIMENSION,
            iterations=iterations,
            alpha=alpha,
            regularization=regularization,
            num_threads=1,
            random_state=seed,
        )
        model.fit(met, show_progress=False)
    return model
