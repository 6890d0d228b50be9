"""How a network is tuned: which weights move, how fast, how far from where they were, and through what detours.

Layer-wise rates after Clark et al., "ELECTRA" (ICLR 2020, appendix A); the pull towards the first weights is L2-SP
(Li et al., ICML 2018, arXiv:1802.01483, equation 2), as CA-MHFA's training uses it; low-rank changes are LoRA (Hu et
al., ICLR 2022, arXiv:2106.09685, equation 3); dropping layers is LayerDrop (Fan et al., ICLR 2020, arXiv:1909.11556).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from knn_cli.errors import KnnError
from knn_cli.network import Network
from knn_cli.recipe import Augment, Lora, Optimizer, Recipe

__all__ = ["LayerDrop", "LowRank", "Pull", "SpecAugment", "Tuned", "groups"]


class LowRank(nn.Module):
    """A parametrization of a weight (out, in): W + alpha / rank * B A; B starts at 0, so nothing changes at first."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        if rank > min(weight.shape):
            raise KnnError(f"A rank of {rank} is no low rank of a weight of {tuple(weight.shape)}.", "Lower it.")
        self.factor = alpha / rank
        self.a = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight (out, in)."""
        return weight + self.factor * (self.b @ self.a)


class SpecAugment:
    """Masks over mel bins and frames of a filter bank's features (Park et al., Interspeech 2019, section 2).

    The masks of the clips that come next are set as `shares` (B, 4): for bins and for frames, how wide a mask is as a
    share of the widest, and where it lies as a share of the free room. Masked features are 0, their mean.

    Raises KnnError for an encoder without a filter bank.
    """

    def __init__(self, encoder: nn.Module, recipe: Augment) -> None:
        self.shares: Tensor | None = None
        self._widest = recipe.mask_bins, recipe.mask_frames
        self._encoder = encoder
        stem, front = getattr(encoder, "stem", None), getattr(encoder, "front", None)
        if front is not None and hasattr(front, "bins"):
            front.register_forward_hook(lambda module, args, features: self(features))
        elif stem is not None and hasattr(encoder, "mel"):
            stem.register_forward_pre_hook(lambda module, args: (self._spliced(args[0]),))
        else:
            raise KnnError("augment.mask_share needs an encoder with a filter bank.", "Take that line out.")

    def __call__(self, features: Tensor) -> Tensor:
        """Features (B, T, bins) with this batch's masks, in training."""
        if self.shares is None or not self._encoder.training:
            return features
        bins = self._masked(features.shape[2], self.shares[:, :2], self._widest[0], features.device)
        frames = self._masked(features.shape[1], self.shares[:, 2:], self._widest[1], features.device)
        return features.masked_fill(bins[:, None, :] | frames[:, :, None], 0.0)

    def _spliced(self, features: Tensor) -> Tensor:
        """The same of frames that lie side by side: (B, T, bins * 5), bins slowest."""
        split = features.view(*features.shape[:2], -1, 5)  # (B, T, bins, 5)
        folded = split.permute(0, 3, 1, 2)  # (B, 5, T, bins)
        return torch.stack([self(one) for one in folded.unbind(1)], dim=3).flatten(2)  # (B, T, bins * 5)

    @staticmethod
    def _masked(size: int, shares: Tensor, widest: int, device: torch.device) -> Tensor:
        """(B, size) bool, True where masked."""
        shares = shares.to(device)
        width = (shares[:, 0] * (min(widest, size) + 1)).floor()  # (B,) 0 to widest
        first = (shares[:, 1] * (size - width + 1)).floor()
        places = torch.arange(size, device=device)
        return (places >= first[:, None]) & (places < (first + width)[:, None])


class LayerDrop:
    """Each block of the encoder left out of a step with this probability, the same in all processes.

    The block runs and its result is not used: the point is the regularization, not the time.
    """

    def __init__(self, encoder: nn.Module, share: float) -> None:
        self.kept: list[bool] = []
        self.share = share
        self._encoder = encoder
        found = blocks(encoder)
        if not found or int(cast(int, encoder.layers)) != len(found) + 1:  # a layer a block, all of one width
            raise KnnError("tuning.layer_drop needs an encoder of equal blocks, such as wavlm.", "Take that line out.")
        for number, block in enumerate(found):
            block.register_forward_hook(self._hook(number))

    def draw(self, random: np.random.Generator) -> None:
        """Choose the blocks of the next step."""
        self.kept = [bool(one >= self.share) for one in random.random(len(blocks(self._encoder)))]

    def _hook(self, number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if not self._encoder.training or not self.kept or self.kept[number]:
                return output
            return cast(Tensor, args[0] + 0.0 * output)  # its weights stay in the graph, with gradients of 0

        return hook


class Pull:
    """L2 pull of the encoder's weights towards those it began with: strength * |w - w0|^2 added to the loss.

    It is added to the gradient itself, once a step, which costs no graph and is the same in all processes.
    """

    def __init__(self, encoder: nn.Module, strength: float) -> None:
        self.strength = strength
        moving = [one for one in encoder.parameters() if one.requires_grad]
        self._pairs = [(one, one.detach().clone()) for one in moving] if strength else []

    def add(self) -> None:
        """Add the pull's gradient to the weights' gradients."""
        for weight, first in self._pairs:
            if weight.grad is not None:
                weight.grad.add_(weight.detach() - first, alpha=2 * self.strength)

    @torch.no_grad()
    def value(self) -> float:
        """The term itself."""
        return self.strength * sum(float((weight - first).square().sum()) for weight, first in self._pairs)


class Tuned:
    """A network made ready for a recipe: frozen parts, low-rank changes, hooks, and what is done to gradients."""

    def __init__(self, network: Network, recipe: Recipe) -> None:
        encoder = network.encoder
        self.network = network
        if recipe.tuning.lora is not None:
            _add_low_rank(encoder, recipe.tuning.lora)
        _freeze(network, recipe.tuning.freeze)
        self.pull = Pull(encoder, recipe.tuning.pull)
        self.drop = LayerDrop(encoder, recipe.tuning.layer_drop) if recipe.tuning.layer_drop else None
        self.spec = SpecAugment(encoder, recipe.augment) if recipe.augment.mask_share else None
        self._cnn_factor = recipe.tuning.cnn_gradient
        self._cnn = list(_convolutions(encoder)) if recipe.tuning.cnn_gradient != 1 else []

    def train(self) -> None:
        """Training mode, but for what is frozen whole: its batch norms keep their statistics."""
        self.network.train()
        for module in self.network.modules():
            own = list(module.parameters())
            if own and not any(one.requires_grad for one in own):
                module.eval()

    def change_gradients(self) -> None:
        """What happens to gradients between their making and their clipping."""
        for weight in self._cnn:
            if weight.grad is not None:
                weight.grad.mul_(self._cnn_factor)
        self.pull.add()


def blocks(encoder: nn.Module) -> list[nn.Module]:
    """The encoder's blocks, first to last; none where it has no such list."""
    found = getattr(encoder, "blocks", None)
    return list(found) if isinstance(found, nn.ModuleList) else []


def groups(network: Network, recipe: Optimizer) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer, one for each learning rate and weight decay; frozen weights are in none.

    Block i of n has encoder_rate * layer_decay^(n - i), what comes before the blocks layer_decay^(n + 1) of it;
    whatever else the encoder has (its last norm) belongs to what comes before. Norms and biases do not decay.

    Raises KnnError for a layer-wise rate of an encoder without blocks.
    """
    rate = recipe.rate if recipe.encoder_rate is None else recipe.encoder_rate
    count = len(blocks(network.encoder))
    if recipe.layer_decay != 1 and not count:
        raise KnnError("optimizer.layer_decay needs an encoder of blocks, such as wavlm.", "Take that line out.")
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        if not weight.requires_grad:
            continue
        part, _, rest = name.partition(".")
        own = recipe.rate
        if part == "encoder":
            number = int(rest.split(".")[1]) + 1 if rest.startswith("blocks.") else 0
            own = rate * recipe.layer_decay ** ((count - number) if number else (count + 1))
        decay = recipe.weight_decay if weight.ndim > 1 else 0.0
        found.setdefault((own, decay), []).append(weight)
    return [
        {"params": weights, "lr": own, "base": own, "weight_decay": decay} for (own, decay), weights in found.items()
    ]


def merged_state(network: Network) -> Mapping[str, Tensor]:
    """The network's weights as a plain network has them, low-rank changes added in; nothing is changed."""
    plain = {}
    for name, value in network.state_dict().items():
        if ".parametrizations.weight." not in name:
            plain[name] = value
        elif name.endswith(".parametrizations.weight.original"):
            owner = name.removesuffix(".parametrizations.weight.original")
            with torch.no_grad():
                plain[f"{owner}.weight"] = cast(Tensor, network.get_submodule(owner).weight).detach()
    return plain


def _add_low_rank(encoder: nn.Module, recipe: Lora) -> None:
    linears = {name: one for name, one in encoder.named_modules() if isinstance(one, nn.Linear)}
    chosen = {name: one for name, one in linears.items() if name.rpartition(".")[2] in recipe.targets}
    missing = set(recipe.targets) - {name.rpartition(".")[2] for name in chosen}
    if missing:
        known = sorted({name.rpartition(".")[2] for name in linears})
        raise KnnError(
            f"The encoder has no linear layer named {sorted(missing)[0]!r} for LoRA.", f"Known: {', '.join(known)}."
        )
    encoder.requires_grad_(False)
    for linear in chosen.values():
        parametrize.register_parametrization(linear, "weight", LowRank(linear.weight, recipe.rank, recipe.alpha))


def _freeze(network: Network, prefixes: tuple[str, ...]) -> None:
    names = [name for name, _ in network.named_parameters()]
    for prefix in prefixes:
        if not any(name == prefix or name.startswith(f"{prefix}.") for name in names):
            known = sorted({".".join(name.split(".")[:2]) for name in names})
            raise KnnError(f"There is nothing named {prefix!r} to freeze.", f"Such as: {', '.join(known)}.")
    for name, weight in network.named_parameters():
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in network.parameters()):
        raise KnnError("All weights are frozen, so there is nothing to train.", "Shorten tuning.freeze.")


def _convolutions(encoder: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of WavLM's convolutions and their norms."""
    front = getattr(encoder, "front", None)
    if front is None or not hasattr(front, "convolutions"):
        raise KnnError("tuning.cnn_gradient is about the convolutions of wavlm.", "Take that line out.")
    yield from front.convolutions.parameters()
    yield from front.norms.parameters()
