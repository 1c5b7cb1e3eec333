"""Real architectures, small: what each puts out, told by hand, and a batch to run it on.

Those of transformers are made from its own classes. Those of PyTorch's examples and of torchvision
are written anew after the originals, with their names and connections, since neither is installed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 as everybody writes it
import transformers
from torch import nn
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Architecture:
    """A model to make, what it is called with, and the weights that must be out as its output."""

    make: Callable[[], nn.Module]
    outputs: tuple[str, ...]
    batch: Callable[[], Any] | None = None  # None where the blocks say all there is to say
    #: Whether names and shapes alone give the same scope by every preset: "agrees", or "differs".
    stored: str = "agrees"

    def value(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """A number per example, of whatever the model gives first."""
        given = batch if isinstance(batch, (tuple, list)) else (batch,)
        found = model(**batch) if isinstance(batch, dict) else model(*given)
        first = next(t for t in tree_leaves(found) if isinstance(t, torch.Tensor) and t.ndim > 1)
        return first.float().flatten(1).mean(1)


# ------------------------------------------------------------------ transformers

VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
SMALL = {**VISION, "vocab_size": 50}
KEYS = {**SMALL, "num_key_value_heads": 2}
HEADED = {**KEYS, "head_dim": 8}
SEQ2SEQ = {
    "d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_layers": 2,
    "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
}  # fmt: skip
GPT = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 50, "n_positions": 8}
SPEECH = {
    **SMALL, "conv_dim": (8, 8), "conv_kernel": (4, 2), "conv_stride": (2, 2),
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
STAGES = {
    "hidden_sizes": [8, 16], "depths": [1, 1], "num_encoder_blocks": 2, "sr_ratios": [2, 1],
    "patch_sizes": [3, 3], "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
    "decoder_hidden_size": 16,
}  # fmt: skip


def of(architecture: str, config: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, architecture)(getattr(transformers, config)(**options))


def pixels(size: int) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {"pixel_values": torch.rand(2, 3, size, size)}


#: Name: class, config, its options, and the weights outside the blocks that make the output.
_WITH_BLOCKS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bert": ("BertForMaskedLM", "BertConfig", SMALL, "cls.predictions.transform.dense"),
    "bert-classifier": ("BertForSequenceClassification", "BertConfig", SMALL, "classifier"),
    "albert": ("AlbertForMaskedLM", "AlbertConfig", {**SMALL, "embedding_size": 8},
               "predictions.dense"),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertConfig",
                   {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "vocab_size": 50},
                   "vocab_transform"),
    "electra": ("ElectraForMaskedLM", "ElectraConfig", {**SMALL, "embedding_size": 8},
                "generator_predictions.dense"),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", SMALL, "lm_head.dense"),
    "deberta": ("DebertaV2ForMaskedLM", "DebertaV2Config", SMALL,
                "cls.predictions.transform.dense"),
    "longformer": ("LongformerForMaskedLM", "LongformerConfig", {**SMALL, "attention_window": 4},
                   "lm_head.dense"),
    "mobilebert": ("MobileBertForMaskedLM", "MobileBertConfig",
                   {**SMALL, "embedding_size": 8, "intra_bottleneck_size": 16,
                    "true_hidden_size": 16}, "cls.predictions.transform.dense"),
    "squeezebert": ("SqueezeBertForMaskedLM", "SqueezeBertConfig", {**SMALL, "embedding_size": 16},
                    "cls.predictions.transform.dense"),
    "xlnet": ("XLNetLMHeadModel", "XLNetConfig",
              {"d_model": 16, "d_inner": 32, "n_layer": 2, "n_head": 2, "vocab_size": 50},
              "lm_loss"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT, "lm_head"),
    "gpt-j": ("GPTJForCausalLM", "GPTJConfig",
              {**GPT, "rotary_dim": 4, "bos_token_id": 0, "eos_token_id": 0}, "lm_head"),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SMALL, "lm_head"),
    "opt": ("OPTForCausalLM", "OPTConfig",
            {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "vocab_size": 50, "word_embed_proj_dim": 16}, "lm_head"),
    "llama": ("LlamaForCausalLM", "LlamaConfig", KEYS, "lm_head"),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", {**KEYS, "tie_word_embeddings": True}, ""),
    "mistral": ("MistralForCausalLM", "MistralConfig", KEYS, "lm_head"),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**KEYS, "num_local_experts": 2}, "lm_head"),
    "qwen2-moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig",
                  {**KEYS, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8,
                   "shared_expert_intermediate_size": 8}, "lm_head"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", HEADED, "lm_head"),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", HEADED, ""),
    "phi": ("PhiForCausalLM", "PhiConfig", KEYS, "lm_head"),
    "falcon": ("FalconForCausalLM", "FalconConfig", SMALL, ""),
    "bloom": ("BloomForCausalLM", "BloomConfig",
              {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50}, ""),
    "mpt": ("MptForCausalLM", "MptConfig",
            {"d_model": 16, "n_heads": 2, "n_layers": 2, "vocab_size": 50}, ""),
    "mamba": ("MambaForCausalLM", "MambaConfig",
              {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "vocab_size": 50,
               "time_step_rank": 4}, ""),
    "mamba2": ("Mamba2ForCausalLM", "Mamba2Config",
               {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "vocab_size": 50,
                "num_heads": 4, "head_dim": 8, "n_groups": 1}, "lm_head"),
    "rwkv": ("RwkvForCausalLM", "RwkvConfig",
             {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 50,
              "attention_hidden_size": 16}, "head"),
    "t5": ("T5ForConditionalGeneration", "T5Config",
           {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
            "vocab_size": 50}, "lm_head"),
    "bart": ("BartForConditionalGeneration", "BartConfig", {**SEQ2SEQ, "vocab_size": 50}, ""),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig",
                {**SEQ2SEQ, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1,
                 "eos_token_id": 2, "decoder_start_token_id": 3, "num_mel_bins": 8,
                 "max_source_positions": 8, "max_target_positions": 8}, ""),
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH, "lm_head"),
    "vit": ("ViTForImageClassification", "ViTConfig",
            {**VISION, "image_size": 8, "patch_size": 4}, "classifier"),
    "deit": ("DeiTForImageClassification", "DeiTConfig",
             {**VISION, "image_size": 8, "patch_size": 4}, "classifier"),
    "beit": ("BeitForImageClassification", "BeitConfig",
             {**VISION, "image_size": 8, "patch_size": 4}, "classifier"),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config",
               {**VISION, "image_size": 8, "patch_size": 4}, "classifier"),
    "clip": ("CLIPModel", "CLIPConfig",
             {"text_config": SMALL,
              "vision_config": {**VISION, "image_size": 8, "patch_size": 4}}, "text_projection"),
    "swin": ("SwinForImageClassification", "SwinConfig",
             {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1],
              "num_heads": [1, 2], "window_size": 4}, "classifier"),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", STAGES,
                  "decode_head.classifier"),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig",
                 {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2}, "classifier"),
    "convnextv2": ("ConvNextV2ForImageClassification", "ConvNextV2Config",
                   {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2}, "classifier"),
}  # fmt: skip

#: Without blocks: the same, and the size of the pictures that are evaluated.
_WITHOUT_BLOCKS: dict[str, tuple[str, str, dict[str, Any], str, int]] = {
    "hf-resnet": ("ResNetForImageClassification", "ResNetConfig",
                  {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}, "classifier.1",
                  32),
    "mobilenetv1": ("MobileNetV1ForImageClassification", "MobileNetV1Config",
                  {"depth_multiplier": 0.25}, "classifier", 32),
    "mobilenetv2": ("MobileNetV2ForImageClassification", "MobileNetV2Config",
                    {"depth_multiplier": 0.35, "num_labels": 10}, "classifier", 32),
    "bit": ("BitForImageClassification", "BitConfig",
            {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 4},
            "classifier.1", 32),
    "poolformer": ("PoolFormerForImageClassification", "PoolFormerConfig",
                   {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}, "classifier", 32),
    "textnet": ("TextNetForImageClassification", "TextNetConfig",
                {"stem_out_channels": 8, "hidden_sizes": [8, 8, 8, 8, 8]}, "fc", 32),
}  # fmt: skip

# ------------------------------------------------------------------ PyTorch's examples


class Dcgan(nn.Module):
    """dcgan/main.py: the generator's or the discriminator's layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.main = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x)


def dcgan_generator(nz: int = 100, ngf: int = 4, nc: int = 3) -> nn.Module:
    layers: list[nn.Module] = []
    widths = (nz, ngf * 8, ngf * 4, ngf * 2, ngf)
    for at, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        stride, padding = (2, 1) if at else (1, 0)
        layers += [
            nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False),
            nn.BatchNorm2d(outputs), nn.ReLU(True),
        ]  # fmt: skip
    return Dcgan(*layers, nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh())


def dcgan_discriminator(ndf: int = 4, nc: int = 3) -> nn.Module:
    layers = [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for inputs in (ndf, ndf * 2, ndf * 4):
        layers += [
            nn.Conv2d(inputs, inputs * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(inputs * 2),
            nn.LeakyReLU(0.2, inplace=True),
        ]  # fmt: skip
    return Dcgan(*layers, nn.Conv2d(ndf * 8, 1, 4, 1, 0, bias=False), nn.Sigmoid())


class Vae(nn.Module):
    """vae/main.py."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 40)
        self.fc21 = nn.Linear(40, 20)
        self.fc22 = nn.Linear(40, 20)
        self.fc3 = nn.Linear(20, 40)
        self.fc4 = nn.Linear(40, 784)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h = F.relu(self.fc1(x.view(-1, 784)))
        mu, logvar = self.fc21(h), self.fc22(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


class MnistNet(nn.Module):
    """mnist/main.py."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, 1)
        self.conv2 = nn.Conv2d(8, 16, 3, 1)
        self.fc1 = nn.Linear(16 * 144, 12)
        self.fc2 = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        return F.log_softmax(self.fc2(F.relu(self.fc1(torch.flatten(x, 1)))), dim=1)


class MnistRnn(nn.Module):
    """mnist_rnn/main.py."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(input_size=28, hidden_size=16, batch_first=True)
        self.batchnorm = nn.BatchNorm1d(16)
        self.fc1 = nn.Linear(16, 12)
        self.fc2 = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.rnn(x.reshape(-1, 28, 28))
        return F.log_softmax(self.fc2(F.relu(self.fc1(self.batchnorm(output[:, -1, :])))), dim=1)


class WordModel(nn.Module):
    """word_language_model/model.py, RNNModel: an LSTM, a GRU, or an RNN with tanh."""

    def __init__(self, kind: str, *, is_tied: bool = False, **options: Any) -> None:
        super().__init__()
        self.encoder = nn.Embedding(30, 16)
        self.rnn = getattr(nn, kind)(16, 16, 2, **options)
        self.decoder = nn.Linear(options.get("proj_size", 16), 30)
        if is_tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        output, _ = self.rnn(self.encoder(tokens.T))
        return F.log_softmax(self.decoder(output), dim=-1).transpose(0, 1)


class WordTransformer(nn.Transformer):
    """word_language_model/model.py, TransformerModel."""

    def __init__(self) -> None:
        super().__init__(16, 2, 2, 1, 32, batch_first=True)
        self.input_emb = nn.Embedding(30, 16)
        self.decoder = nn.Linear(16, 30)


class Translator(nn.Module):
    """language_translation/src/model.py."""

    def __init__(self) -> None:
        super().__init__()
        self.src_embedding, self.tgt_embedding = nn.Embedding(30, 16), nn.Embedding(30, 16)
        self.transformer = nn.Transformer(16, 2, 2, 2, 32, batch_first=True)
        self.ff = nn.Linear(16, 30)


class SuperResolution(nn.Module):
    """super_resolution/model.py."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 5, 1, 2)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1)
        self.conv3 = nn.Conv2d(8, 6, 3, 1, 1)
        self.conv4 = nn.Conv2d(6, 3**2, 3, 1, 1)
        self.pixel_shuffle = nn.PixelShuffle(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
        return self.pixel_shuffle(self.conv4(x))


class ConvLayer(nn.Module):
    """fast_neural_style/neural_style/transformer_net.py, as the two below."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, scale: int = 1) -> None:
        super().__init__()
        self.scale = scale
        self.reflection_pad = nn.ReflectionPad2d(size // 2)
        self.conv2d = nn.Conv2d(inputs, outputs, size, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.scale > 1:
            x = F.interpolate(x, mode="nearest", scale_factor=self.scale)
        return self.conv2d(self.reflection_pad(x))


class StyleBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.in1 = ConvLayer(width, width, 3, 1), nn.InstanceNorm2d(width, affine=True)
        self.conv2, self.in2 = ConvLayer(width, width, 3, 1), nn.InstanceNorm2d(width, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.in2(self.conv2(F.relu(self.in1(self.conv1(x))))) + x


class StyleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.in1 = ConvLayer(3, 4, 9, 1), nn.InstanceNorm2d(4, affine=True)
        self.conv2, self.in2 = ConvLayer(4, 8, 3, 2), nn.InstanceNorm2d(8, affine=True)
        self.res1, self.res2 = StyleBlock(8), StyleBlock(8)
        self.deconv1, self.in4 = ConvLayer(8, 4, 3, 1, 2), nn.InstanceNorm2d(4, affine=True)
        self.deconv3 = ConvLayer(4, 3, 9, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.in2(self.conv2(F.relu(self.in1(self.conv1(x))))))
        return self.deconv3(F.relu(self.in4(self.deconv1(self.res2(self.res1(x))))))


class TimeSequence(nn.Module):
    """time_sequence_prediction/train.py; what it puts out is what it goes on with."""

    def __init__(self, future: int) -> None:
        super().__init__()
        self.future = future
        self.lstm1, self.lstm2 = nn.LSTMCell(1, 12), nn.LSTMCell(12, 12)
        self.linear = nn.Linear(12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, one, two = [], None, None
        for at in range(x.shape[1] + self.future):
            one = self.lstm1(x[:, at : at + 1] if at < x.shape[1] else outputs[-1], one)
            two = self.lstm2(one[0], two)
            outputs.append(self.linear(two[0]))
        return torch.cat(outputs, dim=1)


class Policy(nn.Module):
    """reinforcement_learning/actor_critic.py: two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.affine1 = nn.Linear(4, 12)
        self.action_head = nn.Linear(12, 2)
        self.value_head = nn.Linear(12, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.affine1(x))
        return F.softmax(self.action_head(x), dim=-1), self.value_head(x)


class Bottle(nn.Linear):
    """legacy/snli/model.py: its own Linear."""


class Snli(nn.Module):
    """legacy/snli/model.py: one bidirectional encoder for both sentences."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 10)
        self.projection = Bottle(10, 8)
        self.encoder = nn.ModuleDict({"rnn": nn.LSTM(8, 6, 2, bidirectional=True)})
        self.out = nn.Sequential(
            Bottle(24, 24), nn.ReLU(), Bottle(24, 24), nn.ReLU(), Bottle(24, 3)
        )

    def _encoded(self, tokens: torch.Tensor) -> torch.Tensor:
        _, (state, _) = self.encoder["rnn"](F.relu(self.projection(self.embed(tokens.T))))
        return state[-2:].transpose(0, 1).flatten(1)

    def forward(self, premise: torch.Tensor, hypothesis: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([self._encoded(premise), self._encoded(hypothesis)], 1))


class GraphConv(nn.Module):
    """gcn/main.py: weights that no layer of torch holds."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


class GraphAttention(nn.Module):
    """gat/main.py."""

    def __init__(self, inputs: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(inputs, hidden * heads))
        self.a = nn.Parameter(torch.randn(heads, 2 * hidden, 1))


# ------------------------------------------------------------------ as torchvision names them


class Bottleneck(nn.Module):
    """resnet: with groups, ResNeXt's."""

    def __init__(self, inputs: int, width: int, groups: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self, groups: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Bottleneck(8, 8, groups), Bottleneck(32, 8, groups))
        self.layer2 = nn.Sequential(Bottleneck(32, 16, groups, 2))
        self.fc = nn.Linear(64, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class Siamese(nn.Module):
    """siamese_network/main.py: the trunk of a ResNet, twice, then layers on both."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = nn.Sequential(*[*ResNet().children()][:-1], nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Sequential(nn.Linear(128, 16), nn.ReLU(inplace=True), nn.Linear(16, 1))

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        both = [self.resnet(x).flatten(1) for x in (one, other)]
        return torch.sigmoid(self.fc(torch.cat(both, 1)))


class Classifier(nn.Module):
    """Vgg, alexnet, squeezenet, mobilenet: features, then a classifier."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential, *, last: bool) -> None:
        super().__init__()
        self.features, self.classifier, self.last = features, classifier, last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.classifier(x).mean((2, 3)) if self.last else self.classifier(x.mean((2, 3)))


def vgg() -> nn.Module:
    features = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU()
    )
    head = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.Linear(24, 10))
    return Classifier(features, head, last=False)


def squeezenet() -> nn.Module:
    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU())
    return Classifier(features, nn.Sequential(nn.Dropout(), nn.Conv2d(16, 10, 1)), last=True)


def mobilenet(classes: int = 10) -> nn.Module:
    """Depthwise convolutions of a width that the number of classes divides."""
    features = nn.Sequential(
        nn.Conv2d(3, 40, 3, bias=False), nn.BatchNorm2d(40),
        nn.Conv2d(40, 40, 3, groups=40, bias=False), nn.BatchNorm2d(40),
        nn.Conv2d(40, 24, 1, bias=False), nn.BatchNorm2d(24),
    )  # fmt: skip
    return Classifier(features, nn.Sequential(nn.Linear(24, classes)), last=False)


class Segmentation(nn.Module):
    """fcn_resnet50 with its auxiliary head, which runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet()
        del self.backbone.fc
        self.classifier = nn.Sequential(nn.Conv2d(64, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 5, 1))
        self.aux_classifier = nn.Sequential(nn.Conv2d(32, 8, 3, 1, 1), nn.Conv2d(8, 5, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        middle = self.backbone.layer1(F.relu(self.backbone.bn1(self.backbone.conv1(x))))
        out = self.classifier(self.backbone.layer2(middle))
        return {"out": out, "aux": self.aux_classifier(middle)}


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(16, 6, 2, 2)
        self.final = nn.Conv2d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = F.relu(self.down1(x))
        up = F.relu(self.up2(F.relu(self.down2(one))))
        return self.final(F.relu(self.up1(torch.cat([up, one], 1))))


class VisionTransformer(nn.Module):
    """vit_b_16: its blocks are numbered in their names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, 8, 4)
        layers = {f"encoder_layer_{i}": nn.TransformerEncoderLayer(8, 2, 16) for i in range(2)}
        self.encoder = nn.ModuleDict({"layers": nn.ModuleDict(layers), "ln": nn.LayerNorm(8)})
        self.heads = nn.ModuleDict({"head": nn.Linear(8, 3)})


# ------------------------------------------------------------------ all of them


def images(size: int, channels: int = 3, num: int = 1) -> Callable[[], Any]:
    made = lambda: torch.rand(2, channels, size, size)  # noqa: E731
    return made if num == 1 else lambda: tuple(made() for _ in range(num))


def tokens(num: int = 1) -> Callable[[], Any]:
    made = lambda: torch.randint(0, 30, (2, 5))  # noqa: E731
    return made if num == 1 else lambda: tuple(made() for _ in range(num))


def rows(width: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.rand(2, width)


ARCHITECTURES: dict[str, Architecture] = {
    **{
        name: Architecture(of(kind, config, **options), (f"{out}.weight",) if out else ())
        for name, (kind, config, options, out) in _WITH_BLOCKS.items()
    },
    **{
        name: Architecture(
            of(kind, config, **options), (f"{out}.weight",) if out else (), pixels(size)
        )
        for name, (kind, config, options, out, size) in _WITHOUT_BLOCKS.items()
    },
    "superpoint": Architecture(
        of("SuperPointForKeypointDetection", "SuperPointConfig",
           encoder_hidden_sizes=[4, 4, 8, 8], decoder_hidden_size=8, descriptor_decoder_dim=8),
        ("keypoint_decoder.conv_score_b.weight", "descriptor_decoder.conv_descriptor_b.weight"),
        pixels(32), stored="differs",
    ),
    "dcgan-generator": Architecture(
        dcgan_generator, ("main.12.weight",), lambda: torch.rand(2, 100, 1, 1)
    ),
    "dcgan-discriminator": Architecture(dcgan_discriminator, ("main.11.weight",), images(64)),
    "vae": Architecture(Vae, ("fc4.weight",), rows(784), stored="differs"),
    "mnist": Architecture(MnistNet, ("fc2.weight",), images(28, 1)),
    "mnist-rnn": Architecture(MnistRnn, ("fc2.weight",), images(28, 1)),
    "word-lstm": Architecture(
        lambda: WordModel("LSTM"), ("decoder.weight",), tokens(), stored="differs"
    ),
    "word-lstm-tied": Architecture(
        lambda: WordModel("LSTM", is_tied=True), (), tokens(), stored="differs"
    ),
    "word-lstm-projected": Architecture(
        lambda: WordModel("LSTM", proj_size=6), ("decoder.weight",), tokens(), stored="differs"
    ),
    "word-gru": Architecture(
        lambda: WordModel("GRU"), ("decoder.weight",), tokens(), stored="differs"
    ),
    "word-rnn": Architecture(
        lambda: WordModel("RNN"), ("decoder.weight",), tokens(), stored="differs"
    ),
    "word-transformer": Architecture(WordTransformer, ("decoder.weight",)),
    "translator": Architecture(Translator, ("ff.weight",)),
    "super-resolution": Architecture(SuperResolution, ("conv4.weight",), images(8, 1)),
    "fast-neural-style": Architecture(
        StyleNet, ("deconv3.conv2d.weight",), images(16), stored="differs"
    ),
    "time-sequence": Architecture(lambda: TimeSequence(0), ("linear.weight",), rows(5)),
    "time-sequence-fed-back": Architecture(lambda: TimeSequence(3), ("linear.weight",), rows(5)),
    "actor-critic": Architecture(
        Policy, ("action_head.weight", "value_head.weight"), rows(4), stored="differs"
    ),
    "snli": Architecture(Snli, ("out.4.weight",), tokens(2)),
    "siamese": Architecture(Siamese, ("fc.2.weight",), images(16, num=2)),
    "resnet": Architecture(ResNet, ("fc.weight",), images(16)),
    "resnext": Architecture(lambda: ResNet(4), ("fc.weight",), images(16)),
    "vgg": Architecture(vgg, ("classifier.3.weight",), images(16)),
    "squeezenet": Architecture(squeezenet, ("classifier.1.weight",), images(16)),
    "mobilenet": Architecture(mobilenet, ("classifier.0.weight",), images(16)),
    "fcn": Architecture(
        Segmentation, ("classifier.2.weight", "aux_classifier.1.weight"), images(16),
        stored="differs",
    ),
    "unet": Architecture(UNet, ("final.weight",), images(16), stored="differs"),
    "vision-transformer": Architecture(VisionTransformer, ("heads.head.weight",)),
}  # fmt: skip
