"""The gradient through a chain of latents without a graph of the chain.

The latents solve z = F(z, w), and slot k of F depends on earlier slots alone. With v the gradient that reaches the fed
latents from everything after them, the chain as a whole passes l = v + J' l on to the weights (J = dF/dz). J is
strictly triangular, so that sweeps over l end after at most K of them; each is one backward pass over all slots in
parallel, where a graph of the chain has one for every slot (implicit differentiation, as in deep equilibrium models,
arXiv 1909.01377).
"""

# B = rows, K = slots, D = model width.

from __future__ import annotations

from collections.abc import Callable

import torch

from omni_model.sweeps import settle

Map = Callable[[torch.Tensor], torch.Tensor]


def with_chain_gradient(image_of: Map, latents_BKD: torch.Tensor, *, keep_graph: bool) -> torch.Tensor:
    """F(latents) as a tensor whose gradient is that of the whole chain, where the latents solve z = F(z).

    `keep_graph` runs all backward sweeps over one graph of F. Without it F is evaluated anew for each, which is what
    weights need that are only gathered for one pass (ZeRO-3): twice the price, and the same on every rank.
    Sweeps stop when one changes the gradient by less than 1e-4 of its norm, or by what the latents' type rounds off.
    """
    start = latents_BKD.detach().requires_grad_()
    with torch.enable_grad():
        image = image_of(start)

    def pulled_back(gradient_BKD: torch.Tensor) -> torch.Tensor:
        """J' times a gradient."""
        with torch.enable_grad():
            source, result = (start, image) if keep_graph else _again(image_of, start)
        (pulled,) = torch.autograd.grad(result, source, gradient_BKD, retain_graph=keep_graph, allow_unused=True)
        return torch.zeros_like(gradient_BKD) if pulled is None else pulled

    return _Chain.apply(image, pulled_back, keep_graph)  # type: ignore[return-value]


def _again(image_of: Map, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    source = start.detach().requires_grad_()
    return source, image_of(source)


class _Chain(torch.autograd.Function):
    """The identity, whose backward pass solves for the gradient of the chain."""

    @staticmethod
    def forward(ctx, image: torch.Tensor, pulled_back: Map, keep_graph: bool) -> torch.Tensor:
        ctx.pulled_back, ctx.keep_graph = pulled_back, keep_graph
        return image.view_as(image)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (reached,) = gradients
        finest = max(1e-4, torch.finfo(reached.dtype).eps / 2)
        chained = settle(
            lambda gradient: reached + ctx.pulled_back(gradient),
            reached,
            sweeps=reached.shape[1],
            tolerance=finest,
            backwards=True,
            together=not ctx.keep_graph,
        )
        return chained, None, None
