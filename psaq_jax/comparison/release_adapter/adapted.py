"""The release's own functions and classes, adapted to a job. What is adapted, and nothing else:

- `.cuda()` and "cuda" mean the CPU where there is no GPU;
- today's timm hands its attention a mask (None) and wants torchvision, which the release needs for ImageFolder only;
- the size 224 of the noise, the 1000 classes of the labels, the jitter and the total-variation target, which belong to
  32 images of 224x224, follow the model and the batch, as in recipe "paper"; at 224 and 32 they are the release's own;
- with fewer than 5 classes, top-5 is of all;
- rounds may be shorter than 500 iterations; then a fifth of a round is warm-up, as 100 is of 500;
- weights, calibration and evaluation images come from the job's files, not from downloads and ImageFolder.
"""

import argparse
import importlib
import random
import sys
import time

import numpy as np
import surroundings
import torch
from surroundings import Changed

BUFFERS = ("x_min", "x_max", "relative_position_index", "attn_mask")  # not among the weights


class Rounds:
    """In place of the release's progress bar over a round: sets the round's length and times its iterations."""

    def __init__(self, iterations, groups, tell, wait):
        first = -(-iterations // 2)
        self.first, self.lengths = first, [first, iterations - first] * groups
        self.total, self.tell, self.wait, self.seconds = iterations * groups, tell, wait, []

    def __call__(self, _):
        self.length = self.lengths.pop(0)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def set_description(self, _):
        pass

    def __iter__(self):
        for i in range(self.length):
            began = time.perf_counter()
            yield i
            self.wait()
            self.seconds.append(time.perf_counter() - began)
            self.tell(len(self.seconds), self.total)


class Evaluation:
    """In place of the release's validation loader: (normalised NCHW pixels, labels) from the job's files."""

    def __init__(self, job, folder):
        self.images = np.load(folder / job["images"], mmap_mode="r", allow_pickle=False)[: job["count"]]
        self.table = np.load(folder / job["table"], allow_pickle=False) if job["table"] else None
        labels = np.load(folder / job["labels"], allow_pickle=False) if job["labels"] else None
        self.labels = np.zeros(len(self.images), np.int64) if labels is None else labels.astype(np.int64)
        self.batch = job["batch_size"]

    def __len__(self):
        return -(-len(self.images) // self.batch)

    def __iter__(self):
        for start in range(0, len(self.images), self.batch):
            part = self.images[start : start + self.batch]
            if self.table is not None:
                part = np.stack([self.table[c][part[..., c]] for c in range(3)], axis=-1)
            yield tensor(part), torch.from_numpy(self.labels[start : start + self.batch])


def tensor(nhwc):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(nhwc, -1, 1), dtype=np.float32))


class Release:
    """The release's modules, adapted to one job."""

    def __init__(self, job, folder, tell):
        self.job, self.folder, self.tell = job, folder, tell
        self.device = surroundings.pick_device(job["device"])
        if self.device == "cpu":
            surroundings.stay_on_cpu()
        sys.path.insert(0, job["clone"])
        self.test, self.data = importlib.import_module("test_quant"), importlib.import_module("generate_data")
        accuracy = self.test.accuracy
        self.test.accuracy = lambda y, target, topk: accuracy(y, target, [min(k, y.shape[-1]) for k in topk])
        build = sys.modules["utils.build_model"]
        build.timm = Changed(build.timm, create_model=lambda *_, **__: self.timm_model())
        attention = build.attention_forward
        build.attention_forward = lambda module, x, *_, **__: attention(module, x)  # the mask is None

    def timm_model(self):
        """timm's model of the job's shape and weights, for the release's build_model."""
        from timm.models import swin_transformer, vision_transformer

        swin = self.job["family"] == "swin"
        kind = swin_transformer.SwinTransformer if swin else vision_transformer.VisionTransformer
        return self.loaded(kind(**self.job["shape"]))

    def quantizable_model(self, cfg):
        """The release's own model class of the job's shape and weights."""
        names = {"swin": ("models.swin_quant", "SwinTransformer"), "vit": ("models.vit_quant", "VisionTransformer")}
        module, name = names[self.job["family"]]
        kind = getattr(sys.modules[module], name)
        return self.loaded(kind(**self.job["shape"], input_quant=True, cfg=cfg))

    def loaded(self, model):
        """The model with the weights of whichever file has its names, and the checkpoint's LayerNorm epsilons."""
        wanted = {name for name in model.state_dict() if not name.endswith(BUFFERS)}
        for file in self.job["weights"]:
            with np.load(self.folder / file, allow_pickle=False) as archive:
                if set(archive) == wanted:
                    model.load_state_dict({k: torch.from_numpy(v) for k, v in archive.items()}, strict=False)
                    break
        else:
            raise ValueError(f"no file of weights has the names of {type(model).__module__}.{type(model).__name__}")
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = self.job["embedding_eps" if name.endswith(("embed.norm", "sample.norm")) else "eps"]
        return model

    def generate(self):
        """All groups of images by the release's generate_data: (NHWC images, seconds of each iteration)."""
        job, size = self.job, self.job["image_size"]
        scale = min(size) / 224
        variation = (job["group_size"] * size[0] * size[1] / (32 * 224 * 224)) ** 0.5
        rounds = Rounds(job["iterations"], job["groups"], self.tell, self.wait)
        policy = self.data.lr_cosine_policy
        self.data.torch = Changed(torch, randn=lambda shape: torch.randn((shape[0], 3, *size)))
        self.data.random = Changed(
            random,
            uniform=lambda least, most: random.uniform(least, most) * variation,
            randint=lambda least, most: random.randint(0, job["classes"] - 1) if least == 0
            else random.randint(round(least * scale), round(most * scale)),
        )  # fmt: skip
        self.data.tqdm = rounds
        self.data.lr_cosine_policy = lambda base, *_: policy(base, rounds.first // 5, rounds.first)
        args = argparse.Namespace(model=job["model"], calib_batchsize=job["group_size"])
        groups = []
        for group in range(job["groups"]):
            self.test.seed(job["seed"] + group)
            groups.append(self.data.generate_data(args).cpu().numpy())
        return np.ascontiguousarray(np.moveaxis(np.concatenate(groups), 1, -1)), np.asarray(rounds.seconds)

    def float_logits(self):
        """Logits [n, classes] of the release's model class before it is quantized."""
        model = self.quantizable_model(self.test.Config(8, 8)).to(self.device).eval()
        model.model_freeze()
        with torch.no_grad():
            parts = [model(x.to(self.device)).cpu().numpy() for x, _ in Evaluation(self.job, self.folder)]
        return np.concatenate(parts)

    def quantize(self, calibration, bits):
        """The release's main with these images as its training data: logits, ranges in running order, its figures."""
        logits, order, figures = [], [], []
        pixels = tensor(np.load(self.folder / calibration, allow_pickle=False))

        def build(pretrained, cfg):
            model = self.quantizable_model(cfg)
            for module in model.modules():
                if type(module).__name__ == "QuantAct":
                    module.register_forward_hook(lambda m, *_: None if m in order else order.append(m))
            model.register_forward_hook(lambda m, _, y: logits.append(y.cpu().numpy()) if m.act_out.quant else None)
            return model

        def validate(*arguments):
            figures.append(theirs(*arguments))
            return figures[-1]

        theirs = self.test.validate
        self.test.args = argparse.Namespace(
            model=self.job["model"], device=self.device, seed=self.job["seed"], mode=2, w_bit=bits[0], a_bit=bits[1],
            print_freq=100,
        )  # fmt: skip
        self.test.str2model = lambda _: build
        self.test.build_dataset = lambda _: ([(pixels, None)], Evaluation(self.job, self.folder))
        self.test.validate = validate
        try:
            self.test.main()
        finally:
            self.test.validate = theirs
        ranges = np.asarray([(m.x_min.item(), m.x_max.item()) for m in order], np.float32)
        return {"logits": np.concatenate(logits), "ranges": ranges, "figures": np.asarray(figures[-1])}

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()
