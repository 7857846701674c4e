"""Mistakes in the training, thought of by somebody who had not read the tests."""

from __future__ import annotations

from ..mutant import Mutant

# The tests that are about a module, where more import it than are about it.
TESTS: dict[str, tuple[str, ...]] = {
    "training/base/precision.py": ("tests/training/test_precision.py", "tests/training/test_engine_optimizer.py"),
    "training/base/rng.py": ("tests/training/test_stage_steps.py",),
    "training/data/batches.py": ("tests/training/test_data_stream.py::test_a_batch_is_what_its_stage_reads",),
    "training/data/order.py": ("tests/training/test_data_order.py",),
    "training/stages/diffusion_loss.py": (
        "tests/training/test_stable_diffusion.py::test_pictures_become_latents_of_the_recorded_distribution",
    ),
    "training/stages/instruct.py": ("tests/training/test_stage_steps.py",),
}

OUTSIDE: tuple[tuple[str, str, str, str], ...] = (
    (
        "the warm-up begins at rate 0",
        "training/engine/optimizer.py",
        '(step if config.name == "original" else step + 1)',
        "step",
    ),
    (
        "the last rate is not final_lr",
        "training/engine/optimizer.py",
        "return config.final_lr + (config.lr - config.final_lr) * left",
        "return config.lr * left",
    ),
    (
        "weight decay is coupled to nothing",
        "training/engine/optimizer.py",
        'torch._foreach_mul_(params, 1 - lr * group["weight_decay"])',
        'torch._foreach_mul_(params, 1 - group["weight_decay"])',
    ),
    (
        "the moving average follows by its decay",
        "training/engine/optimizer.py",
        "torch._foreach_lerp_(list(self.average.values()), current, 1 - self.decay)",
        "torch._foreach_lerp_(list(self.average.values()), current, self.decay)",
    ),
    (
        "a loss scale below 1 is an explanation",
        "training/base/precision.py",
        "explained = self.value > 1.0",
        "explained = self.value >= 1.0",
    ),
    (
        "the loss scale grows one step late",
        "training/base/precision.py",
        "if self.good_steps == self.interval:",
        "if self.good_steps > self.interval:",
    ),
    (
        "random numbers do not depend on the step",
        "training/base/rng.py",
        "self.step, self.first_row + row, purpose",
        "0, self.first_row + row, purpose",
    ),
    (
        "random numbers do not depend on the purpose",
        "training/base/rng.py",
        "self.first_row + row, purpose))",
        "self.first_row + row))",
    ),
    (
        "dropout is the same in every micro-batch",
        "training/engine/loop.py",
        'counters.step, micro, "dropout"',
        'counters.step, 0, "dropout"',
    ),
    (
        "the gradient is not divided by the count",
        "training/engine/loop.py",
        "scale = config.batch.size / (counters.loss_scale.value * count)",
        "scale = 1 / counters.loss_scale.value",
    ),
    (
        "clipping from twice the limit on",
        "training/engine/loop.py",
        "if 0 < config.optim.clip_norm < norm:",
        "if 0 < config.optim.clip_norm < norm / 2:",
    ),
    (
        "non-finite steps in a row are never reset",
        "training/engine/loop.py",
        "            counters.skipped_in_a_row = 0\n",
        "            pass\n",
    ),
    (
        "the null condition is drawn with the time steps",
        "training/stages/instruct.py",
        'rng.uniform("null", len(latents), latents.device)',
        'rng.uniform("timestep", len(latents), latents.device)',
    ),
    (
        "the posterior's mean stands for a draw",
        "training/stages/diffusion_loss.py",
        'mean + deviation * rng.normal("latents", tuple(mean.shape), mean.device)',
        "mean",
    ),
    (
        "the end of a caption counts as padding",
        "training/stages/alignment_loss.py",
        "torch.where(ended <= 1, 1.0, padding)",
        "torch.where(ended < 1, 1.0, padding)",
    ),
    (
        "a source's remainder is not carried on",
        "training/data/mixture.py",
        "round(self.owed[name] + share - counts[name], 9)",
        "round(self.owed[name], 9)",
    ),
    (
        "rows of a step are not spread",
        "training/data/mixture.py",
        "places = [((number + 0.5) / count, name)",
        "places = [(0.5, name)",
    ),
    (
        "the second epoch has the order of the first",
        "training/data/order.py",
        "seed_of(self.seed, epoch)).permutation(self.size // self.block)",
        "seed_of(self.seed, 0)).permutation(self.size // self.block)",
    ),
    (
        "the sentence behind a picture begins a unit of its own",
        "training/data/packing.py",
        "units[-1] = last + added.pop(0)",
        "pass",
    ),
    (
        "units that just fit do not",
        "training/data/packing.py",
        "return len(first.token_ids) + len(second.token_ids) <= length",
        "return len(first.token_ids) + len(second.token_ids) < length",
    ),
    (
        "a picture's ids are targets",
        "training/data/batches.py",
        "| (token_ids == ids.image_start)",
        "| (token_ids == ids.image_end)",
    ),
    ("weights are averaged in float32", "training/average.py", "share * tensor.double()", "share * tensor.float()"),
    ("files of other dropout have no mean", "training/average.py", "size not in FREE_SIZES and sizes", "sizes"),
    (
        "an average tells the first file's number format",
        "training/average.py",
        '        metadata["dtype"] = dtype\n',
        "        pass\n",
    ),
    (
        "validation trains what was at rest",
        "training/engine/validation.py",
        "            module.training = True\n",
        "            module.train()\n",
    ),
    (
        "a goal is not judged at its own step",
        "training/engine/validation.py",
        "step < expected.by_step",
        "step <= expected.by_step",
    ),
    ("long validations are told of each time", "training/engine/validation.py", "            self.told = True\n", ""),
    (
        "validation leaves out the last turn",
        "training/engine/validation.py",
        "range(-(-self.count // world_size))",
        "range(self.count // world_size)",
    ),
    (
        "a table's moved rows outlive a loaded state",
        "training/engine/table_gradients.py",
        "        self._moved.clear()\n",
        "        pass\n",
    ),
    (
        "rows that an earlier step moved stand still",
        "training/engine/table_gradients.py",
        "rows = self._moved[p] = max(self._moved[p], table.used)",
        "rows = self._moved[p] = table.used",
    ),
    (
        "after an update of the whole table few rows move",
        "training/engine/table_gradients.py",
        "            self._moved.pop(p, None)",
        "            pass",
    ),
    (
        "the first of every five photographs is held out",
        "training/personalize/photographs.py",
        "range(HELD_OUT - 1, len",
        "range(0, len",
    ),
    (
        "a photograph of just the smallest side is left out",
        "training/personalize/photographs.py",
        "if min(image.size) < least:",
        "if min(image.size) <= least:",
    ),
    (
        "the best embeddings go on with the tuning",
        "training/personalize/tuning.py",
        "now.best, now.best_loss, now.best_step = now.embeddings.clone(),",
        "now.best, now.best_loss, now.best_step = now.embeddings,",
    ),
    (
        "the gradient of a tuning keeps its loss scale",
        "training/personalize/tuning.py",
        "gradient = embeddings.grad / now.loss_scale.value",
        "gradient = embeddings.grad",
    ),
    (
        "a tuning waits one look longer",
        "training/personalize/tuning.py",
        "waited = now.step - now.best_step >= ",
        "waited = now.step - now.best_step > ",
    ),
    (
        "running means lean towards 0",
        "training/engine/rate_sweep.py",
        "found.append(mean / (1 - SMOOTHING**count))",
        "found.append(mean)",
    ),
    (
        "the record of the last step done is removed",
        "training/engine/progress.py",
        '["step"] <= done',
        '["step"] < done',
    ),
    (
        "the shortest part's rate wins",
        "training/engine/optimizer.py",
        "rates[max(own, key=len)]",
        "rates[min(own, key=len)]",
    ),
    (
        "dollars are those of one GPU",
        "training/plan/estimate.py",
        "hours * plan.processes * rates.price",
        "hours * rates.price",
    ),
    (
        "after a bad document the next begins in its middle",
        "training/data/lanes.py",
        "                self.unit = 0\n                self._stop",
        "                self._stop",
    ),
    (
        "a lane that goes back keeps its document",
        "training/data/lanes.py",
        "        self.position, self.unit = state\n        self._document = None\n",
        "        self.position, self.unit = state\n",
    ),
    (
        "a shard that was replaced keeps its rows",
        "training/data/cache.py",
        ' and made.get("shard_size") == shard.size:',
        ":",
    ),
)
MUTANTS = tuple(Mutant(*fields, tests=TESTS.get(fields[1], ()), author="outside") for fields in OUTSIDE)
