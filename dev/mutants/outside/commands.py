"""Mistakes in data construction and evaluation: what is read, kept, gone on with and shown."""

from __future__ import annotations

from ..mutant import Mutant

OUTSIDE: tuple[tuple[str, ...], ...] = (
    (
        "a run that comes to nothing takes a folder of finished shards away",
        "training/construct/output_shards.py",
        'if self.began and not any(self.folder.rglob("*.stats.json")):',
        "if self.began:",
        "tests/construct/test_changed_input.py::test_parts_of_a_shard_are_joined_in_the_inputs_order_and_all_of_them_count",
    ),
    (
        "a shard whose index is lost is finished",
        "training/construct/output_shards.py",
        'for x in (".tar", ".tar.idx")\n',
        'for x in (".tar",)\n',
        "tests/construct/test_changed_input.py::test_lost_output_is_made_again",
    ),
    (
        "parts are joined in the order in which they arrive",
        "training/construct/output_shards.py",
        "        parts = sorted(parts, key=lambda part: part.number)\n",
        "",
        "tests/construct/test_changed_input.py::test_parts_of_a_shard_are_joined_in_the_inputs_order_and_all_of_them_count",
    ),
    (
        "a changed caption beside a picture is not noticed",
        "training/construct/input_shards.py",
        "for name in (image, *beside)]",
        "for name in (image,)]",
        "tests/construct/test_changed_input.py::test_corrected_caption_beside_a_picture_is_taken_up",
    ),
    (
        "a file of just the most megabytes is not read",
        "training/construct/input_shards.py",
        "            if path.stat().st_size > most:\n",
        "            if path.stat().st_size >= most:\n",
        "tests/construct/test_tars.py::test_a_picture_of_just_the_largest_size_is_read_from_a_folder_too",
    ),
    (
        "a language model writes behind its padding",
        "training/construct/entity_extractors.py",
        '"entities.model", padding_side="left")',
        '"entities.model")',
        "tests/construct/test_models.py::test_mpt_runs_natively_and_left_padding_changes_nothing",
    ),
    (
        "names of things are no entities",
        "training/construct/entity_extractors.py",
        'head.pos_ not in ("NOUN", "PROPN")',
        'head.pos_ not in ("NOUN",)',
        "tests/construct/test_models.py::test_names_and_compounds_are_entities_and_pronouns_and_words_for_the_picture_are_none",
    ),
    (
        "SAM 3 does not ask whether the words are in the picture",
        "training/construct/segmenters.py",
        "scores = scores * torch.sigmoid(found.presence_logits.float())",
        "pass",
        "tests/construct/test_models.py::test_sam3_joins_the_sure_instances_and_asks_whether_the_words_are_there_at_all",
    ),
    (
        "one of several instances is the entity",
        "training/construct/segmenters.py",
        "Region(masks[sure].amax(0).numpy(), surest)",
        "Region(masks[score.argmax()].numpy(), surest)",
        "tests/construct/test_models.py::test_sam3_joins_the_sure_instances_and_asks_whether_the_words_are_there_at_all",
    ),
    (
        "what a run waits for is said once",
        "training/construct/stall.py",
        "before, moved, said = count, now, None\n",
        "before, moved = count, now\n",
        "tests/construct/test_places.py::test_what_is_waited_for_is_said_once_and_again_after_it_went_on",
    ),
    (
        "a shrunken mask is shifted to the upper left",
        "training/construct/sample_encoding.py",
        "(np.arange(side) + 0.5) * len(mask)",
        "np.arange(side) * len(mask)",
        "tests/construct/test_masks.py::test_a_mask_is_written_smaller_by_the_pixels_in_the_middle",
    ),
    (
        "models compute in the bytes of others",
        "training/construct/chunks.py",
        'content = row["content"].copy() if own else row["content"]',
        'content = row["content"]',
        "tests/construct/test_chunk_rows.py::test_models_get_arrays_of_their_own_to_compute_in",
    ),
    (
        "no process may segment",
        "training/construct/construct_config.py",
        "        super().__post_init__()\n",
        "",
        "tests/construct/test_command.py::test_wrong_settings_are_one_sentence_and_exit_code_2",
    ),
    (
        "a prompt may have its noun twice",
        "training/evaluate/subjects.py",
        'if prompt.count("{}") != 1:',
        'if "{}" not in prompt:',
        "tests/evaluate/test_lists.py::test_subjects_of_ones_own_are_checked",
    ),
    (
        "hidden files are photographs",
        "training/evaluate/subjects.py",
        'if is_image_name(path.name) and not path.name.startswith("."))',
        "if is_image_name(path.name))",
        "tests/evaluate/test_lists.py::test_photographs_of_a_subject_are_neither_its_masks_nor_hidden_files",
    ),
    (
        "two subjects may have one name",
        "training/evaluate/subjects.py",
        "if names.count(name) > 1",
        "if names.count(name) > 2",
        "tests/evaluate/test_same_content.py::test_two_subjects_of_one_name_are_refused",
    ),
    (
        "scoring forgets what made the pictures",
        "training/evaluate/output_folder.py",
        '"contents": (recorded or {}) | now}',
        '"contents": now}',
        "tests/evaluate/test_same_content.py::test_pictures_that_are_scored_without_their_models_keep_the_record_of_these",
    ),
    (
        "a guidance of 0 is the default",
        "training/evaluate/command_options.py",
        "guidance if options.guidance is None else options.guidance,",
        "options.guidance or guidance,",
        "tests/evaluate/test_same_content.py::test_what_is_left_open_of_sampling_is_the_commands_own_and_a_guidance_of_0_is_none",
    ),
    (
        "pictures of a prompt are looked for where the command runs",
        "training/evaluate/compare.py",
        "(path.parent / name).resolve()",
        "Path(name).resolve()",
        "tests/evaluate/test_compare.py::test_a_page_shows_every_model_with_equal_seeds",
    ),
    (
        "scoring alone computes pictures of another number format",
        "training/evaluate/command_options.py",
        '("weights", "sd", "dtype", *names)',
        '("weights", "sd", *names)',
        "tests/evaluate/test_same_content.py::test_scores_alone_take_from_the_record_whatever_made_the_pictures",
    ),
)
MUTANTS = tuple(Mutant(*fields[:4], tests=fields[4:], author="outside") for fields in OUTSIDE)
