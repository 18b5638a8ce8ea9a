"""Positive definite systems as large as memory, solved in place."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["inverse_diagonal", "solve_in_place"]

BLOCK = 2048  # columns factored at once
PANEL = 8192  # rows and columns of one product; bounds what is allocated besides


def solve_in_place(
    matrix: torch.Tensor,
    rhs: torch.Tensor,
    *,
    advance: Callable[[int], None] = lambda columns: None,
) -> torch.Tensor:
    """Solve ``matrix @ x = rhs`` by a blocked Cholesky factorisation; both are overwritten.

    torch's own copies the matrix, which then would have to fit twice.

    Args:
        matrix: ``(n, n)`` symmetric positive definite; only its lower triangle is read, which
            becomes the factor.
        rhs: ``(n, k)`` of the same type.
        advance: told of columns that are factored.

    Returns:
        ``rhs``, which holds x.

    Raises:
        torch.linalg.LinAlgError: the matrix is not positive definite.
    """
    n = len(matrix)
    blocks = [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
    for block in blocks:
        below = slice(block.stop, n)
        for start in range(0, block.start, PANEL):
            done = slice(start, min(start + PANEL, block.start))
            row = matrix[block, done].T.contiguous()
            for top in range(block.start, n, PANEL):
                part = slice(top, min(top + PANEL, n))
                matrix[part, block].addmm_(matrix[part, done], row, alpha=-1)
        factor = torch.linalg.cholesky(matrix[block, block])
        matrix[block, block] = factor
        if below.start < n:
            solved = torch.linalg.solve_triangular(
                factor.T, matrix[below, block], upper=True, left=False
            )
            matrix[below, block] = solved
        advance(block.stop - block.start)
    for block in blocks:
        factor = matrix[block, block]
        rhs[block] = torch.linalg.solve_triangular(factor, rhs[block], upper=False)
        rhs[block.stop :] -= matrix[block.stop :, block] @ rhs[block]
    for block in reversed(blocks):
        factor = matrix[block, block]
        rhs[block] -= matrix[block.stop :, block].T @ rhs[block.stop :]
        rhs[block] = torch.linalg.solve_triangular(factor.T, rhs[block], upper=True)
    return rhs


def inverse_diagonal(
    factor: torch.Tensor, *, advance: Callable[[int], None] = lambda columns: None
) -> torch.Tensor:
    """Return the diagonal of the inverse of a matrix that :func:`solve_in_place` factored.

    Args:
        factor: ``(n, n)``; only its lower triangle is read.
        advance: told of columns that are done.

    Returns:
        ``(n,)``: sums of squares over the columns of the factor's inverse.
    """
    n = len(factor)
    result = factor.new_empty(n)
    for left in range(0, n, BLOCK):
        columns = min(BLOCK, n - left)
        inverse = factor.new_zeros(n - left, columns)
        inverse[:columns].fill_diagonal_(1)
        for start in range(left, n, BLOCK):
            rows = slice(start - left, min(start + BLOCK, n) - left)
            block = slice(start, min(start + BLOCK, n))
            inverse[rows] = torch.linalg.solve_triangular(
                factor[block, block].tril(), inverse[rows], upper=False
            )
            inverse[rows.stop :] -= factor[block.stop :, block] @ inverse[rows]
        result[left : left + columns] = inverse.square().sum(dim=0)
        advance(columns)
    return result
