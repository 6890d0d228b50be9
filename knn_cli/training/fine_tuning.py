"""Fine-tuning: frozen weights, layer-wise learning rates, L2-SP, LoRA, adapters and LayerDrop.

Layer-wise rates after Clark et al., "ELECTRA" (ICLR 2020, appendix A); the penalty on the distance to the initial
weights is L2-SP (Li et al., ICML 2018, arXiv:1802.01483, equation 2), as in CA-MHFA's training; low-rank changes are
LoRA (Hu et al., ICLR 2022, arXiv:2106.09685, equation 3); dropping layers is LayerDrop (Fan et al., ICLR 2020,
arXiv:1909.11556).
Bottleneck adapters are in `networks.encoders.adapters`, masks in `spec_augment`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from knn_cli.core.errors import KnnError
from knn_cli.networks.contracts import Encoder
from knn_cli.networks.encoders.adapters import adapters_of
from knn_cli.networks.network import Network
from knn_cli.training.dataset import Rows
from knn_cli.training.recipe import AdapterConfig, LoraConfig, OptimizerConfig, Recipe
from knn_cli.training.spec_augment import SpecAugment

__all__ = ["L2SP", "FineTuner", "LayerDrop", "LowRankUpdate", "depths_below_top", "merged_state", "parameter_groups"]

_MASKS = ("mask_share", "mask_time_share", "mask_feature_share")  # of [augment]


class LowRankUpdate(nn.Module):
    """LoRA's parametrization of a weight (out, in): W + alpha / rank * B A.

    B is initialized with 0, so that the weight is unchanged at first.

    Raises
    ------
    KnnError
        The rank exceeds the smaller dimension of the weight.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        if rank > min(weight.shape):
            raise KnnError(f"A rank of {rank} is no low rank of a weight of {tuple(weight.shape)}.", "Lower it.")
        self.factor = alpha / rank
        self.a = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Add the low-rank update to the weight (out, in)."""
        return weight + self.factor * (self.b @ self.a)


class LayerDrop:
    """Skips each block of the encoder with probability `share`; the same blocks in all processes.

    A skipped block is still computed and its output is discarded: LayerDrop serves as regularization here, not to save
    time.

    Raises
    ------
    KnnError
        The encoder has no blocks of equal width.
    """

    def __init__(self, encoder: Encoder, share: float) -> None:
        self.kept: list[bool] = []
        self.share = share
        self._encoder = encoder
        blocks = encoder.block_list()
        if not blocks or encoder.layers != len(blocks) + 1:  # a layer per block, all of the same width
            raise KnnError("tuning.layer_drop needs an encoder of equal blocks, such as wavlm.", "Take that line out.")
        for number, block in enumerate(blocks):
            block.register_forward_hook(self._hook(number))

    def draw(self, random: np.random.Generator) -> None:
        """Draw the blocks that the next step keeps."""
        self.kept = [bool(value >= self.share) for value in random.random(len(self._encoder.block_list()))]

    def _hook(self, number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if not self._encoder.training or not self.kept or self.kept[number]:
                return output
            return cast(Tensor, args[0] + 0.0 * output)  # the weights stay in the graph, with gradients of 0

        return hook


class L2SP:
    """L2-SP: penalizes the distance of the encoder's weights from their initial values, strength * |w - w0|^2.

    Its gradient is added directly, once per step, which needs no graph and is the same in all processes.
    """

    def __init__(self, encoder: nn.Module, strength: float) -> None:
        self.strength = strength
        trained = [weight for weight in encoder.parameters() if weight.requires_grad]
        self._pairs = [(weight, weight.detach().clone()) for weight in trained] if strength else []

    def add(self) -> None:
        """Add the gradient of the penalty to the gradients of the weights."""
        for weight, initial in self._pairs:
            if weight.grad is not None:
                weight.grad.add_(weight.detach() - initial, alpha=2 * self.strength)

    @torch.no_grad()
    def value(self) -> float:
        """The value of the penalty."""
        return self.strength * sum(float((weight - initial).square().sum()) for weight, initial in self._pairs)


class FineTuner:
    """Applies a recipe's fine-tuning options to a network: frozen weights, LoRA, adapters, hooks and gradients.

    Parameters
    ----------
    network : Network
        The network, which is changed in place.
    recipe : Recipe
        The recipe, of which the tables [tuning], [augment] and [optimizer] are used.

    Raises
    ------
    KnnError
        An option needs modules that the network does not have, or would have no effect.
    """

    def __init__(self, network: Network, recipe: Recipe) -> None:
        encoder = network.encoder
        self.network = network
        if recipe.tuning.lora is not None:
            _add_low_rank(encoder, recipe.tuning.lora)
        if recipe.tuning.adapters is not None:
            _train_adapters_only(encoder, recipe.tuning.adapters)
        _freeze(network, recipe.tuning.freeze)
        if not any(weight.requires_grad for weight in encoder.parameters()):
            _refuse_for_frozen(recipe)
        self.l2_sp = L2SP(encoder, recipe.tuning.pull)
        self.layer_drop = LayerDrop(encoder, recipe.tuning.layer_drop) if recipe.tuning.layer_drop else None
        masked = any(getattr(recipe.augment, key) for key in _MASKS)
        self.spec_augment = SpecAugment(encoder, recipe.augment) if masked else None
        self._cnn_factor, self._encoder_factor = recipe.tuning.cnn_gradient, recipe.tuning.encoder_gradient
        self._cnn = _convolutions(encoder) if recipe.tuning.cnn_gradient != 1 else []
        if self._cnn and not any(weight.requires_grad for weight in self._cnn):
            raise KnnError("tuning.cnn_gradient has no effect on frozen convolutions.", "Take that line out.")

    def train(self) -> None:
        """Set training mode, except in modules that are completely frozen, whose batch norms keep their statistics."""
        self.network.train()
        for module in self.network.modules():
            weights = list(module.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                module.eval()

    def draw(self, random: np.random.Generator) -> None:
        """Draw the blocks that the next step skips."""
        if self.layer_drop is not None:
            self.layer_drop.draw(random)

    def set_mask_seeds(self, seeds: Rows) -> None:
        """Set the mask seeds (B,) of the clips of the next batch."""
        if self.spec_augment is not None:
            self.spec_augment.seeds = seeds

    def change_gradients(self) -> None:
        """Scale and add to gradients, after the backward pass and before clipping."""
        for weight in self._cnn:
            if weight.grad is not None:
                weight.grad.mul_(self._cnn_factor)
        for weight in self.network.encoder.parameters() if self._encoder_factor != 1 else ():
            if weight.grad is not None:
                weight.grad.mul_(self._encoder_factor)
        self.l2_sp.add()


def parameter_groups(network: Network, recipe: OptimizerConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay.

    Pooling and head have the learning rate `rate`, weights of the encoder encoder_rate * layer_decay^depth, where the
    depth is that of `depths_below_top`. Norms and biases have no weight decay, unless `decay_all` says so.

    Parameters
    ----------
    network : Network
        The network.
    recipe : OptimizerConfig
        The recipe's table [optimizer].

    Returns
    -------
    list of dict
        Parameter groups for a torch optimizer.

    Raises
    ------
    KnnError
        The recipe asks for layer-wise rates and the encoder has no blocks.
    """
    rate = recipe.rate if recipe.encoder_rate is None else recipe.encoder_rate
    if recipe.layer_decay != 1 and not network.encoder.block_list():
        raise KnnError("optimizer.layer_decay needs an encoder of blocks, such as wavlm.", "Take that line out.")
    down = depths_below_top(network.encoder)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        if not weight.requires_grad:
            continue
        part, _, rest = name.partition(".")
        weight_rate = recipe.rate
        if part == "encoder":
            weight_rate = rate * recipe.layer_decay ** down[rest]
        decay = recipe.weight_decay if weight.ndim > 1 or recipe.decay_all else 0.0
        groups.setdefault((weight_rate, decay), []).append(weight)
    return [{"params": weights, "lr": each, "weight_decay": decay} for (each, decay), weights in groups.items()]


def depths_below_top(encoder: Encoder) -> dict[str, int]:
    """Depth of each weight of an encoder below its top.

    The depth is 0 after the blocks, 1 in the last of n blocks, n in the first block and n + 1 before the blocks.
    Modules that are registered after `blocks` count as after the blocks, except a module list of the same length,
    whose items count as parts of the blocks. All weights of an encoder without blocks have depth 1.

    Returns
    -------
    dict of str to int
        Parameter name -> depth.
    """
    children, count = dict(encoder.named_children()), len(encoder.block_list())
    order = list(children)
    blocks_position = order.index("blocks") if count else len(order)
    depths = {}
    for name, _ in encoder.named_parameters():
        child, _, rest = name.partition(".")
        module = children.get(child)
        behind = child in order[blocks_position:] or (child == "norm" and encoder.norm_after_blocks)
        if behind and isinstance(module, nn.ModuleList) and len(module) == count:
            depths[name] = count - int(rest.partition(".")[0])
        else:
            depths[name] = 0 if behind else count + 1
    return depths


def merged_state(network: Network) -> Mapping[str, Tensor]:
    """The state dict of a plain network, with LoRA's updates merged into the weights.

    The network itself is not changed.
    """
    plain = {}
    for name, value in network.state_dict().items():
        if ".parametrizations.weight." not in name:
            plain[name] = value
        elif name.endswith(".parametrizations.weight.original"):
            owner = name.removesuffix(".parametrizations.weight.original")
            with torch.no_grad():
                plain[f"{owner}.weight"] = cast(Tensor, network.get_submodule(owner).weight).detach()
    return plain


def _add_low_rank(encoder: nn.Module, recipe: LoraConfig) -> None:
    linears = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    chosen = {name: linear for name, linear in linears.items() if name.rpartition(".")[2] in recipe.targets}
    missing = set(recipe.targets) - {name.rpartition(".")[2] for name in chosen}
    if missing:
        known = sorted({name.rpartition(".")[2] for name in linears})
        raise KnnError(
            f"The encoder has no linear layer named {sorted(missing)[0]!r} for LoRA.", f"Known: {', '.join(known)}."
        )
    encoder.requires_grad_(False)
    for linear in chosen.values():
        parametrize.register_parametrization(linear, "weight", LowRankUpdate(linear.weight, recipe.rank, recipe.alpha))


def _train_adapters_only(encoder: Encoder, recipe: AdapterConfig) -> None:
    """Freeze the encoder except its adapters and, if the recipe asks for it, the norms of its blocks."""
    encoder.requires_grad_(False)
    for weight in adapters_of(encoder).values():
        weight.requires_grad_(True)
    for block in encoder.block_list() if recipe.norms else ():
        for norm in block.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.requires_grad_(True)


def _refuse_for_frozen(recipe: Recipe) -> None:
    """Raise KnnError for options that affect an encoder's training, if the encoder is completely frozen."""
    for key, asked in (
        *((f"augment.{key}", getattr(recipe.augment, key) > 0) for key in _MASKS),
        ("tuning.layer_drop", recipe.tuning.layer_drop > 0),
        ("tuning.pull", recipe.tuning.pull > 0),
        ("tuning.encoder_gradient", recipe.tuning.encoder_gradient != 1),
        ("optimizer.encoder_rate", recipe.optimizer.encoder_rate is not None),
        ("optimizer.layer_decay", recipe.optimizer.layer_decay != 1),
    ):
        if asked:
            raise KnnError(
                f"{key} has no effect on an encoder that is completely frozen.",
                "Take that line out, or shorten tuning.freeze.",
            )


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


def _convolutions(encoder: Encoder) -> list[nn.Parameter]:
    weights = encoder.convolution_weights()
    if not weights:
        raise KnnError("tuning.cnn_gradient needs the convolutions of wavlm or wav2vec2.", "Take that line out.")
    return weights
