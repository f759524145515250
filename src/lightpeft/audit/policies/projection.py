"""Projections of one gradient on another: ILProj's (Gu et al., ACL 2023, eq. 5-7) and PCGrad's."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from lightpeft.audit.policies.options import Projection


def project(gradient: Tensor, other: Tensor, projection: "Projection" = "conditional") -> Tensor:
    """g_i - (g_i · g_j / ‖g_j‖²) g_j (eq. 5): g_i without its part along g_j. Both are vectors (numbers,).

    `conditional`: only where g_i · g_j < 0 (PCGrad; Yu et al. 2020, algorithm 1). `literal`: always. Where
    g_j is 0, g_i stays.
    """
    inner, square = gradient @ other, other @ other
    if projection == "conditional":
        inner = inner.clamp(max=0)
    share = inner / square.where(square > 0, 1)
    return gradient - share * other


def control(clean: Tensor, poisoned: Tensor, beta: float, projection: "Projection") -> Tensor:
    """(1 - β)(ĝ_c + ĝ_p) + β (g_c + g_p) of one layer (eq. 6, 7)."""
    joint = clean + poisoned
    if beta == 1:
        return joint
    projected = project(clean, poisoned, projection) + project(poisoned, clean, projection)
    return projected if beta == 0 else (1 - beta) * projected + beta * joint
