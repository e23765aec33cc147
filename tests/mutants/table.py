"""The mutants: each a one-line bug, and the fast test that must fail when the bug is planted."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One planted bug.

    Attributes:
        name: what the bug does.
        file: where it is planted.
        find: part of one line; occurs once in the file.
        replace: the replacement.
        test: the pytest node that must fail.
    """

    name: str
    file: str
    find: str
    replace: str
    test: str


_TRANSFORMER = "tests/model/test_transformer.py::"
_ATTEND = "tests/model/test_attend.py::"
_PIECES = "tests/model/test_pieces.py::"
_DTYPES = "tests/model/test_dtypes.py::"
_BIDIRECTIONAL = "tests/model/test_bidirectional.py::"
_ATTENTION = "tests/train/finetuning/test_attention.py::"
_AVERAGE = "tests/train/test_average.py::"
_LOSSES = "tests/model/test_losses.py::"
_HEADS = "tests/model/test_heads.py::"
_TASK_HEADS = "tests/model/test_task_heads.py::"
_ADAPT = "tests/model/test_adapt.py::"
_QUANTIZATION = "tests/model/test_quantization.py::"
_SAMPLING = "tests/model/test_sampling.py::"
_PACKING = "tests/data/test_packing.py::"
_MIXTURE = "tests/data/test_mixture.py::"
_STEP = "tests/train/test_step.py::"
_MOMENTS = "tests/train/test_moments.py::"
_FIT = "tests/train/planner/test_fit.py::"
_ADAPTATION = "tests/train/finetuning/test_adaptation.py::"
_RATE = "tests/train/finetuning/test_learning_rate.py::"
_RESTORE = "tests/train/checkpoint/test_restore.py::"
_RUN = "tests/train/run/test_run.py::"
_HUGGINGFACE = "tests/train/huggingface/test_huggingface.py::test_logits_equal_transformers_and_weights_round_trip"

_FIELDS = "tests/model/test_huggingface_fields.py::"
_AXIS = "tests/model/test_expert_axis.py::test_dispatch_over_the_axis_equals_a_dense_reference_in_every_gradient"
_BALANCE = "tests/train/test_balance.py::"
_UNKNOWN = "residual_multiplier=0.2: unknown, so it may change what llama"
_EXPORT = "tests/train/huggingface/test_export_tasks.py::"
_RING = "tests/model/test_ring.py::"
_LONG = "tests/model/test_long_rows.py::"

_MODEL = (
    Mutant(
        "the causal mask is dropped", "model/context.py", "mask_BTS &= k <= q", "pass",
        f"{_TRANSFORMER}test_attention_is_causal[default]",
    ),
    Mutant(
        "segment ids are ignored", "model/context.py",
        "context.segments_BT[:, :, None] == context.key_segments_BS[:, None, :]", "k >= 0",
        f"{_TRANSFORMER}test_packed_documents_have_the_same_logits_as_alone[default]",
    ),
    Mutant(
        "the sliding window is a token too wide", "model/context.py", "&= q - k < window", "&= q - k <= window",
        f"{_TRANSFORMER}test_sliding_window_limits_how_far_back_a_token_attends",
    ),
    Mutant(
        "a window does not limit how far ahead a token sees", "model/context.py",
        "if window and not causal:", "if False:",
        f"{_BIDIRECTIONAL}test_a_token_sees_its_window_on_both_sides",
    ),
    Mutant(
        "the planner ignores the attention of the task", "train/step.py",
        'causal=settings.task.attention != "bidirectional"', "causal=True",
        f"{_ATTENTION}test_the_planner_compiles_the_attention_of_the_task",
    ),
    Mutant(
        "the average of the weights never moves", "train/step.py",
        "(params, opt_state, average),", "(params, opt_state, state.average),",
        f"{_AVERAGE}test_the_average_is_that_of_the_steps_that_were_not_skipped",
    ),
    Mutant(
        "the base of the rotary positions is wrong", "model/rotary.py", "rotary.theta **", "10_000.0 **",
        f"{_TRANSFORMER}test_rotary_frequencies_are_powers_of_the_base",
    ),
    Mutant(
        "rotary positions mirror instead of turning", "model/rotary.py", "a * cos - b * sin", "a * cos + b * sin",
        f"{_TRANSFORMER}test_rotary_products_depend_only_on_distance",
    ),
    Mutant(
        "queries are not normed", "model/attention.py", 'self._normed("query_norm", q_BTNH)', "q_BTNH",
        f"{_TRANSFORMER}test_qk_norm_is_scale_invariant",
    ),
    Mutant(
        "grouped heads are repeated in the wrong order", "model/attend.py",
        "q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)",
        "q_BTKGH = q_BTNH.reshape(B, T, N // K, K, H).swapaxes(2, 3)",
        f"{_TRANSFORMER}test_grouped_heads_equal_repeated_kv_heads",
    ),
    Mutant(
        "attention is not scaled by the head's size", "model/attend.py", "config.head_dim**-0.5", "1.0",
        f"{_ATTEND}test_xla_equals_the_definition[grouped heads]",
    ),
    Mutant(
        "the softcap of attention is dropped", "model/attend.py",
        "logits_BKGTS = softcap * jnp.tanh(logits_BKGTS / softcap)",
        "pass", f"{_PIECES}test_pieces_equal_whole_products[softcap and scale-pieces of equal size]",
    ),
    Mutant(
        "a piece's window begins a key too late", "model/pieces.py", "max(start - window + 1, 0)",
        "max(start - window + 2, 0)",
        f"{_PIECES}test_pieces_equal_whole_products[all at once-pieces of equal size]",
    ),
    Mutant(
        "keys get the gradient of the last piece alone", "model/pieces.py", "dk_nTH.at[:, span.keys].add(dk_nSH)",
        "dk_nTH.at[:, span.keys].set(dk_nSH)",
        f"{_PIECES}test_pieces_equal_whole_products[grouped heads-pieces of equal size]",
    ),
    Mutant(
        "attention in pieces has the gradient without the softcap", "model/pieces.py", "inner_nGC[:, None]) * slope)",
        "inner_nGC[:, None]) * scores.scale)",
        f"{_PIECES}test_pieces_equal_whole_products[softcap and scale-pieces of equal size]",
    ),
    Mutant(
        "a query of the backward pass sees later keys", "model/pieces.py", "within(scores, c - s[:, None])",
        "within(scores, c - s[:, None] + 1)",
        f"{_PIECES}test_pieces_equal_whole_products[grouped heads-pieces of equal size]",
    ),
    Mutant(
        "a CPU without instructions for it computes in bfloat16", "model/dtypes.py",
        'return "avx512_bf16" in', 'return "avx512f" in',
        f"{_DTYPES}test_a_cpu_needs_instructions_and_kernels_that_may_be_used",
    ),
    Mutant(
        "the softcap of the logits is dropped", "model/losses.py",
        "return softcap * jnp.tanh(z / softcap) if softcap else z", "return z",
        f"{_LOSSES}test_value_and_gradient_equal_optax[False-5.0-0.0-0]",
    ),
    Mutant(
        "a chunk with targets is skipped", "model/losses.py", "(weights_nPR != 0).any((1, 2)).sum()",
        "(weights_nPR != 0).any((1, 2)).sum() // 2",
        f"{_LOSSES}test_chunks_without_targets_are_skipped[(4, 1)-0]",
    ),
    Mutant(
        "the softcap has no gradient", "model/losses.py", "1.0 - jnp.square(logits_PRV / options.softcap)", "1.0",
        f"{_LOSSES}test_value_and_gradient_equal_optax[False-5.0-0.0-3]",
    ),
    Mutant(
        "the z-loss has the wrong sign", "model/losses.py", "nll_PR + options.z_loss *", "nll_PR - options.z_loss *",
        f"{_LOSSES}test_value_and_gradient_equal_optax[False-0.0-0.1-0]",
    ),
    Mutant(
        "the z-loss has half its gradient", "model/losses.py", "1.0 + 2.0 * options.z_loss", "1.0 + options.z_loss",
        f"{_LOSSES}test_value_and_gradient_equal_optax[False-0.0-0.1-3]",
    ),
    Mutant(
        "label smoothing adds to the target's weight", "model/losses.py",
        "(1.0 - options.smoothing) * labels_PRV + ", "labels_PRV + ",
        f"{_LOSSES}test_smoothing_equals_cross_entropy_with_smoothed_labels",
    ),
    Mutant(
        "masked tokens count in the loss", "model/losses.py",
        "terms.log_z, options) * weights_PR[..., None]", "terms.log_z, options)",
        f"{_LOSSES}test_masked_tokens_get_exactly_zero_gradient",
    ),
    Mutant(
        "the table's gradient is that of one device", "model/losses.py", "grad_PVD.sum(0)", "grad_PVD[0]",
        f"{_LOSSES}test_mesh_does_not_change_value_and_gradient",
    ),
    Mutant(
        "a classifier reads the token before the last", "model/heads.py", 'if pooling == "mean" else x_BTD',
        'if pooling == "mean" else jnp.roll(x_BTD, 1, axis=1)',
        f"{_HEADS}test_pooling_reads_the_last_token_or_the_mean",
    ),
    Mutant(
        "a mean runs over the whole row", "model/heads.py", "jnp.tril(same_BTS)", "jnp.tril(jnp.ones_like(same_BTS))",
        f"{_HEADS}test_running_mean_stays_within_its_segment",
    ),
    Mutant(
        "DPO prefers the rejected answer", "model/task_heads.py", "beta * (chosen - rejected)",
        "beta * (rejected - chosen)", f"{_TASK_HEADS}test_dpo_loss_follows_its_equation",
    ),
    Mutant(
        "DPO forgets the reference", "model/task_heads.py", 'log_p_BT - batch["reference"]', "log_p_BT",
        f"{_TASK_HEADS}test_dpo_loss_follows_its_equation",
    ),
    Mutant(
        "LoRA is scaled by alpha alone", "model/adapt.py", "x * (adaptation.alpha / adaptation.rank)",
        "x * adaptation.alpha", f"{_ADAPT}test_merged_equals_applied[lora-changes0]",
    ),
    Mutant(
        "the scales of int8 are those of the inputs", "model/quantization.py",
        "scales = jnp.abs(kernel).max(tuple(range(inputs)))", "scales = jnp.abs(kernel).max(tuple(range(1)))",
        f"{_QUANTIZATION}test_int8_is_within_half_a_step_of_its_output_channel[shape1-2]",
    ),
    Mutant(
        "the nibbles of NF4 are exchanged", "model/quantization.py", "[packed & 15, packed >> 4]",
        "[packed >> 4, packed & 15]", f"{_QUANTIZATION}test_nf4_equals_a_numpy_reference[shape0-1]",
    ),
    Mutant(
        "top-p keeps one token too few", "model/sampling.py", ", axis=-1) - jax.nn.softmax(ordered_BV)", ", axis=-1)",
        f"{_SAMPLING}test_each_filter_keeps_the_right_tokens[how2-expected2]",
    ),
    Mutant(
        "a repeated token gets likelier", "model/sampling.py", "logits_BV / p, logits_BV * p",
        "logits_BV * p, logits_BV / p",
        f"{_SAMPLING}test_repetition_penalty_makes_seen_tokens_less_likely",
    ),
    Mutant(
        "the cache is written a column late", "model/transformer.py", "jnp.asarray(prompts_BP.shape[1])",
        "jnp.asarray(prompts_BP.shape[1] + 1)", f"{_SAMPLING}test_cached_logits_equal_uncached_logits[grouped heads]",
    ),
    Mutant(
        "a shorter prompt begins at its padding", "model/transformer.py",
        "jnp.arange(prompts_BP.shape[1]) - padding_B[:, None]",
        "jnp.arange(prompts_BP.shape[1]) - 0 * padding_B[:, None]",
        f"{_SAMPLING}test_cached_logits_equal_uncached_logits[learned positions]",
    ),
    Mutant(
        "a ring forgets a token too early", "model/cache.py", "window + self.chunk - 1", "window + self.chunk - 2",
        f"{_SAMPLING}test_cached_logits_equal_uncached_logits[sliding window]",
    ),
    Mutant(
        "a ring is read as if it were a line", "model/cache.py", "last - (last - jnp.arange(size)) % size",
        "jnp.arange(size)", f"{_SAMPLING}test_cached_logits_equal_uncached_logits[sliding window]",
    ),
    Mutant(
        "a checkpoint is kept or deleted by its count alone", "train/checkpoint/manager.py",
        ", keep_period=keep_period or None", "",
        "tests/train/checkpoint/test_checkpoint_policy.py::test_saved_and_kept_steps_follow_the_config[changes0-kept0]",
    ),
    Mutant(
        "import reads a matrix the wrong way round", "model/huggingface/weights.py",
        "outputs_last = theirs.swapaxes(-1, -2) if self.inputs and self.transposed else theirs",
        "outputs_last = theirs", f"{_HUGGINGFACE}[llama3]",
    ),
    Mutant(
        "import exchanges the weights of two experts", "model/huggingface/weights.py",
        "experts = range(self.experts) if", "experts = (1, 0, *range(2, self.experts)) if", f"{_HUGGINGFACE}[olmoe]",
    ),
    Mutant(
        "import exchanges gates and ups of experts", "model/huggingface/tables.py",
        '{"gate": "w1", "up": "w3", "down": "w2"}', '{"gate": "w3", "up": "w1", "down": "w2"}',
        f"{_HUGGINGFACE}[mixtral]",
    ),
    Mutant(
        "the losses of routers count tokens, not targets", "model/heads.py",
        "factor_B = found.weight_B / jnp.maximum(tokens_B, 1)", "factor_B = jnp.ones_like(found.weight_B)",
        "tests/model/test_router_losses.py::"
        "test_each_head_adds_the_losses_of_routers_however_a_batch_is_cut[classes]",
    ),
    Mutant(
        "an unknown field of config.json is ignored", "model/huggingface/fields.py", "    if unknown:", "    if False:",
        f"{_FIELDS}test_a_field_that_changes_the_function_is_refused_by_name[llama2_7b-fields31-{_UNKNOWN}]",
    ),
    Mutant(
        "an exported classifier pads with its eos token", "train/huggingface/exported_tokenizer.py",
        "    if tokenizer.pad_id != tokenizer.eos_id:", "    if True:",
        f"{_EXPORT}test_the_rightmost_token_that_is_not_pad_is_the_one_the_head_was_trained_at[eos is pad]",
    ),
    Mutant(
        "only one end of turn is imported", "data/tokenizer.py", "return list(dict.fromkeys(ids))", "return ids[:1]",
        "tests/train/huggingface/test_chat_models.py::test_all_end_ids_are_imported[generation0-2-ends0]",
    ),
)  # fmt: skip
_DATA = (
    Mutant(
        "targets are not shifted", "data/packing.py", "read[1:][columns[row]]", "read[columns[row]]",
        f"{_PACKING}test_every_target_appears_once_with_its_input",
    ),
    Mutant(
        "positions do not start anew with a document", "data/packing.py",
        "place - np.repeat(starts", "place - 0 * np.repeat(starts",
        f"{_PACKING}test_segments_and_positions_match_the_documents",
    ),
    Mutant(
        "the row of a batch is the next one", "data/loader.py", "* self.batch_size + row_indices",
        "* self.batch_size + row_indices + 1",
        f"{_PACKING}test_epochs_visit_every_row_once_in_different_orders",
    ),
    Mutant(
        "the weights of a mixture never change", "data/mixture.py", "for source in sources}), *schedule]",
        "for source in sources})]", f"{_MIXTURE}test_a_row_of_a_mixture_is_that_of_its_source",
    ),
    Mutant(
        "all sources of a mixture are shuffled alike", "data/mixed_rows.py", "source_seed(seed, self.names[source])",
        "seed", f"{_MIXTURE}test_two_sources_of_equal_length_are_shuffled_differently",
    ),
    Mutant(
        "a source's rows before a change of weights are forgotten", "data/row_plan.py", "before + share * rows",
        "before + 0 * rows", f"{_MIXTURE}test_no_source_is_two_rows_from_its_share_where_weights_change[6-5]",
    ),
    Mutant(
        "a mixture's past weights change on resume", "train/run/mixture_change.py", "if step < done]", "if step < 0]",
        "tests/train/test_mixture.py::test_weights_of_the_past_do_not_change",
    ),
    Mutant(
        "a resumed run reads from the first batch", "data/loader.py", "range(start, stop)", "range(stop - start)",
        f"{_PACKING}test_batches_do_not_depend_on_prefetching_or_the_first_step[0]",
    ),
    Mutant(
        "evaluation counts the rows that fill a batch", "data/loader.py", '("weights", "segment_ids"):',
        '("segment_ids",):',
        f"{_PACKING}test_evaluation_counts_each_target_once_and_pads_with_weight_0",
    ),
    Mutant(
        "the mask of a chat is not shifted", "data/examples.py", "mask[1:]", "mask[:-1]",
        "tests/data/test_examples.py::test_text_targets_are_shifted_by_one",
    ),
    Mutant(
        "the user's turn is trained on", "data/templates.py", "(text + opening, False), (", "(text + opening, True), (",
        "tests/data/test_templates.py::test_text_and_mask_of_each_template[chatml]",
    ),
    Mutant(
        "a content may hold a special token", "data/templates.py",
        'guard(message["content"].translate(_OWN), added)', 'message["content"].translate(_OWN)',
        "tests/data/test_templates.py::test_content_never_becomes_a_special_token[chatml]",
    ),
    Mutant(
        "a name that a template looks for is split", "data/templates.py",
        'if split_at([*kept, *more]).replace(GUARD, "") == text:', "if more:",
        "tests/data/test_jinja_templates.py::test_text_and_mask_equal_apply_chat_template[thoughts-13]",
    ),
    Mutant(
        "a choice is encoded by itself", "data/seams.py", "wholes = [encode(text + ending) for",
        "wholes = [head + encode(ending) for",
        "tests/data/test_seams.py::test_a_choice_after_a_word_is_the_rest_of_the_joint_tokens[prepend normalizer]",
    ),
    Mutant(
        "the first generated word loses its space", "data/seams.py",
        "before, whole = tokenizer.decode(tail), tokenizer.decode([*tail, *ids])",
        'before, whole = "", tokenizer.decode(ids)',
        "tests/train/generation/test_decode.py::test_prompt_and_continuation_are_one_text[prepend normalizer]",
    ),
    Mutant(
        "a stop string cannot be a special token", "train/generation/stopping.py",
        'self._spelled += self._names[token]', 'self._spelled += ""',
        "tests/train/generation/test_decode.py::test_stop_strings_may_contain_special_tokens[bytes-a special token]",
    ),
    Mutant(
        "validation rows are trained on", "data/labeled.py", "if split_of[fold(e.group)] == name",
        "if split_of[fold(e.group)] in (name, 'validation')",
        "tests/data/test_labeled.py::test_splits_share_no_text_and_duplicates_are_counted",
    ),
    Mutant(
        "a class is only in the held-out rows", "data/stratify.py", "counts[name][split] < least[name][split]",
        "counts[name][split] < 0", "tests/data/test_stratify.py::test_a_rare_class_is_trained_on[1]",
    ),
    Mutant(
        "null is an empty text", "data/columns.py", 'if rules.missing == "empty"', "if rules.missing",
        "tests/data/test_columns.py::test_missing_value_is_an_error_or_empty[None]",
    ),
    Mutant(
        "rows are not cleaned like training text", "data/columns.py", "return clean(value) if rules.clean else value",
        "return value", "tests/data/test_columns.py::test_text_is_cleaned_like_training_text",
    ),
    Mutant(
        "rows like a held-out one are trained on", "data/labeled.py", "if fold(e.content) not in held_out and ", "if ",
        "tests/data/test_labeled.py::test_training_rows_that_share_text_or_group_with_test_rows_are_dropped",
    ),
    Mutant(
        "held-out documents are trained on", "data/preparation/tokenizing.py", "unit.places() == place",
        "unit.places() >= place", "tests/data/test_prepare.py::test_every_document_is_kept_once",
    ),
    Mutant(
        "a damaged store passes", "data/store_check.py", "!= shard.sha256[kind]", "is None",
        "tests/data/test_store.py::test_verify_store_detects_corruption",
    ),
    Mutant(
        "the last copy of a document stays", "data/preparation/splitting.py", "np.lexsort((digests",
        "np.lexsort((-documents, digests",
        "tests/data/preparation/test_any_division.py::test_units_and_shards_do_not_change_a_store[documents-20011-200000]",
    ),
    Mutant(
        "a unit begins after its first line", "data/lines.py", "raw.seek(part.start)", "raw.seek(part.start + 1)",
        "tests/data/preparation/test_units.py::test_every_kind_of_source_is_cut_where_it_can_be",
    ),
    Mutant(
        "an error names the line in its unit", "data/lines.py", "(part.start, part.first) if", "(part.start, 1) if",
        "tests/data/preparation/test_units.py::test_a_bad_row_is_named_by_its_line_in_the_whole_file[field]",
    ),
    Mutant(
        "documents are in the order of units", "data/preparation/gathering.py",
        "np.lexsort((keys[:, 1], keys[:, 0])).tolist()", "range(len(keys))",
        "tests/data/preparation/test_any_division.py::test_units_and_shards_do_not_change_a_store[documents-20011-200000]",
    ),
    Mutant(
        "a range within one shard only", "data/store.py", "while stop > firsts[shard + 1]:", "while False:",
        "tests/data/test_store.py::test_shards_do_not_change_the_content[shards0]",
    ),
    Mutant(
        "what was begun for other text is used", "data/preparation/workspace.py",
        '.read_text(encoding="utf-8") == text', '.read_text(encoding="utf-8")',
        "tests/data/preparation/test_any_division.py::test_what_was_begun_for_another_request_is_not_used[text]",
    ),
)  # fmt: skip
_TRAIN = (
    Mutant(
        "a skipped step holds the learning rate back", "train/step.py",
        "return new if isinstance(new, optax.ScaleByScheduleState)",
        "return old if isinstance(new, optax.ScaleByScheduleState)",
        f"{_STEP}test_the_learning_rate_after_a_skipped_step_is_the_one_that_is_logged",
    ),
    Mutant(
        "a class may have no training row", "data/stratify.py", "return first or all(", "return all(",
        "tests/data/test_stratify.py::test_a_class_is_trained_on_whatever_the_shares[shares0-sizes0]",
    ),
    Mutant(
        "padding makes a text longer", "model/continuations.py", "jnp.maximum(weights_BM.sum(-1) - 1, 0)",
        "(0 * weights_BM.sum(-1) + tokens_BM.shape[1] - 1)",
        "tests/model/test_continuations.py::test_a_score_does_not_depend_on_the_longest_continuation[longrope]",
    ),
    Mutant(
        "the choices of a task are those of the rows that are scored", "train/evaluation/harness.py",
        "for rows in read.values() for row in rows if _LABEL in row",
        'for row in read["test"] if _LABEL in row',
        "tests/train/evaluation/test_harness.py::test_choices_are_the_labels_of_all_rows_and_texts_beside_numbers_are_texts",
    ),
    Mutant(
        "a run that resumes is given a new learning rate", "train/finetuning/run.py",
        'optimizer["learning_rate"] or record["optimizer"]["learning_rate"]', 'optimizer["learning_rate"]',
        f"{_RATE}test_the_chosen_rate_trains_and_a_run_keeps_it",
    ),
    Mutant(
        "random weights train at the rate of adapters", "train/finetuning/comparison.py",
        "run.settings if from_foundation else for_all_weights(", "run.settings if True else for_all_weights(",
        f"{_RATE}test_the_chosen_rate_trains_and_a_run_keeps_it",
    ),
    Mutant(
        "a prompt that is cut counts as whole", "train/finetuning/predictor.py",
        "return len(prompt) < len(", "return len(prompt) > len(",
        "tests/train/prediction/test_predict.py::test_prompts_that_are_cut_are_counted_and_marked[chat]",
    ),
    Mutant(
        "LoRA exchanges the gradients of its base", "train/planner/estimate.py",
        "gradients = rest + (0.0 if frozen else ", "gradients = rest + (0.0 if False else ",
        "tests/train/planner/test_pricing.py::test_only_the_gradients_of_what_is_trained_are_exchanged",
    ),
    Mutant(
        "microbatches are averaged instead of summed", "train/step.py", "return sums.objective, sums",
        "return sums.objective / sums.weight, sums",
        f"{_STEP}test_microbatches_of_unequal_weight_equal_one_batch",
    ),
    Mutant(
        "gradients are not divided by the number of targets", "train/step.py", "lambda g: g / weight", "lambda g: g",
        f"{_STEP}test_step_uses_the_mean_over_its_targets",
    ),
    Mutant(
        "the loss is not divided by the number of targets", "train/step.py", "sums.nll / weight", "sums.nll",
        f"{_STEP}test_step_uses_the_mean_over_its_targets",
    ),
    Mutant(
        "the next step's learning rate is reported", "train/step.py", "schedule(state.step)",
        "schedule(state.step + 1)",
        f"{_STEP}test_step_uses_the_mean_over_its_targets",
    ),
    Mutant(
        "weight decay applies to norms", "train/optimizer.py", "mask=matrices,", "",
        f"{_STEP}test_weight_decay_applies_only_to_matrices",
    ),
    Mutant(
        "a small second moment is stored as zero", "train/moments.py", "jnp.maximum(codes, 1.0)", "codes",
        f"{_MOMENTS}test_a_small_gradient_beside_a_large_one_does_not_make_a_step_explode",
    ),
    Mutant(
        "8-bit second moments have equally spaced codes", "train/moments.py",
        "jnp.round(255 * jnp.sqrt(jnp.sqrt(part)))", "jnp.round(255 * part)",
        f"{_MOMENTS}test_a_small_gradient_beside_a_large_one_does_not_make_a_step_explode",
    ),
    Mutant(
        "an 8-bit first moment loses its sign", "train/moments.py", "codes * jnp.abs(codes)", "codes * codes",
        f"{_MOMENTS}test_8_bits_keep_signs_and_numbers_that_are_three_powers_of_ten_apart",
    ),
    Mutant(
        "layers share one factored moment", "train/moments.py", '_STACKED_AXES = frozenset({"layers", "experts"})',
        '_STACKED_AXES = frozenset({"experts"})', f"{_MOMENTS}test_factors_are_the_moving_means_of_adafactor",
    ),
    Mutant(
        "the scale of a row has the wrong axes", "train/moments.py", '"scale": (last,)', '"scale": (0,)',
        f"{_MOMENTS}test_every_part_of_a_moment_is_sharded_like_its_parameter[sharded]",
    ),
    Mutant(
        "--fit stops at the first choice that fits", "train/planner/fit.py",
        "while index and fits(candidates[index - 1]):", "while False:",
        f"{_FIT}test_the_next_cheaper_choice_was_tried_and_does_not_fit",
    ),
    Mutant(
        "--fit starts with smaller moments", "train/planner/fit.py", "    yield {}", "    yield from ()",
        f"{_FIT}test_lossless_choices_come_first_and_lossy_ones_only_when_needed",
    ),
    Mutant(
        "gradients are not clipped", "train/optimizer.py", "] if settings.clip_norm else []", "][:0]",
        f"{_STEP}test_gradients_are_clipped_to_clip_norm",
    ),
    Mutant(
        "warm-up ends one step late", "train/optimizer.py", "max(warmup - 1, 1)", "max(warmup, 1)",
        "tests/train/test_schedule.py::test_schedules_warm_up_and_end_at_the_final_fraction",
    ),
    Mutant(
        "the last layer gets the lowest learning rate", "train/optimizer.py",
        "dtype=np.float32)[::-1]", "dtype=np.float32)",
        f"{_ADAPTATION}test_layer_decay_scales_updates_of_lower_layers[adamw]",
    ),
    Mutant(
        "Muon swaps inputs and outputs", "train/optimizer.py", "if embed < min(others):", "if embed > min(others):",
        f"{_STEP}test_muon_orthogonalizes_only_matrices_layer_by_layer",
    ),
    Mutant(
        "the optimizer's state is not restored", "train/checkpoint/restore.py", 'items["opt_state"], {},',
        'jax.tree.map(jnp.zeros_like, items["opt_state"]), {},',
        f"{_RESTORE}test_restored_state_equals_the_saved_one",
    ),
    Mutant(
        "a checkpoint is not resharded for the current mesh", "train/checkpoint/steps.py",
        "item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item),", "item=item,",
        f"{_RESTORE}test_restore_on_another_mesh",
    ),
    Mutant(
        "checksums are not compared", "train/checkpoint/steps.py", "if leaf.checksum != found[path]",
        "if not leaf.checksum",
        f"{_RESTORE}test_flipped_bit_is_detected",
    ),
    Mutant(
        "a checksum ignores the order of values", "train/checkpoint/checksums.py",
        "products = ((words * a), (words * b))",
        "products = ((words * a[(0,) * x.ndim]), (words * b[(0,) * x.ndim]))",
        f"{_RESTORE}test_checksum_changes_with_any_value_or_order",
    ),
    Mutant(
        "shapes of a checkpoint are not compared", "train/checkpoint/manifest.py",
        "if (a.shape, a.dtype) != (b.shape, b.dtype):",
        "if a is None:", f"{_RESTORE}test_restore_into_another_model_names_the_leaf",
    ),
    Mutant(
        "records of repeated steps are kept", "train/run/history.py", "_step_of(line) <= step]",
        "_step_of(line) < math.inf]",
        "tests/train/run/test_history.py::test_lines_of_repeated_steps_are_dropped[local]",
    ),
    Mutant(
        "two runs may share a directory", "train/run/lock.py", "fcntl.LOCK_EX", "fcntl.LOCK_SH",
        f"{_RUN}test_a_second_run_in_the_same_directory_is_an_error",
    ),
    Mutant(
        "another tokenizer is accepted", "train/run/record.py", ".sha256 != tokenizer.sha256", ".sha256 is None",
        f"{_RUN}test_resume_requires_the_same_data_tokenizer_and_config",
    ),
    Mutant(
        "changed data are accepted", "train/run/record.py",
        "if before.data_fingerprint != record.data_fingerprint and not accept_changed_data",
        "if before.data_fingerprint is None", f"{_RUN}test_resume_requires_the_same_data_tokenizer_and_config",
    ),
    Mutant(
        "a run resumes from another foundation", "train/run/lineage_change.py", "or (moved and same_run)",
        "or same_run", "tests/train/run/test_lineage_change.py::test_another_run_or_none_is_refused_by_name",
    ),
    Mutant(
        "a stacked bias is decayed as a matrix", "train/optimizer.py",
        " and not set(box.names) <= _STREAM_AXES | _STACKED_AXES", "",
        "tests/train/test_optimizer.py::test_kernels_and_tables_are_matrices_and_nothing_else",
    ),
    Mutant(
        "a changed config is accepted", "train/run/record.py",
        "if old.get(name) != new[name] and", "if old is None and",
        f"{_RUN}test_fields_added_to_the_config_later_get_their_defaults",
    ),
    Mutant(
        "the highest loss is kept as the best", "train/early_stopping.py",
        '"lower" if name.partition("/")[0].endswith(_LOWER_IS_BETTER) else "higher"',
        '"higher"',
        "tests/train/test_early_stopping.py::test_lower_loss_and_higher_accuracy_are_better",
    ),
    Mutant(
        "early stopping waits one evaluation too long", "train/early_stopping.py",
        "self.settings.patience <= self.since",
        "self.settings.patience < self.since",
        "tests/train/test_early_stopping.py::test_patience_counts_consecutive_evaluations",
    ),
    Mutant(
        "a class that a resample lacks counts as 0", "train/evaluation/metrics.py",
        "np.ma.masked_array(f1, absent)", "np.ma.masked_array(np.nan_to_num(f1), False)",
        "tests/train/evaluation/test_intervals.py::test_perfect_predictions_of_rare_classes",
    ),
    Mutant(
        "the weights of having and lacking a class are swapped", "model/heads.py",
        "class_weights_2V[1], class_weights_2V[0]", "class_weights_2V[0], class_weights_2V[1]",
        "tests/model/test_heads.py::test_multi_label_loss_is_weighted_by_class_and_by_its_target",
    ),
    Mutant(
        "a longer run keeps the old schedule", "train/optimizer.py",
        "jnp.where(count < step,", "jnp.where(count >= 0,",
        "tests/train/test_schedule.py::test_a_change_of_length_keeps_the_steps_before_it[linear]",
    ),
    Mutant(
        "a run may become shorter than what it has done", "train/run/length.py", "if new < done:", "if new < 0:",
        "tests/train/run/test_length.py::test_what_a_run_cannot_do_is_one_line[linear]",
    ),
    Mutant(
        "a directory appears before it is complete", "data/storage/new_directory.py", "yield temporary", "yield path",
        "tests/train/test_paths_and_terminals.py::test_an_interrupted_command_runs_again[export-hf]",
    ),
    Mutant(
        "an object of a bucket is truncated by appending", "data/storage/remote.py",
        'if mode.startswith("a"):', "if False:",
        "tests/data/storage/test_paths.py::test_an_object_is_not_appended_to[gs]",
    ),
    Mutant(
        "the manifest of a store is not uploaded last", "data/storage/files.py",
        "key=lambda path: path == source / last", "key=str",
        "tests/data/storage/test_paths.py::test_in_a_bucket_the_manifest_is_written_last[gs]",
    ),
    Mutant(
        "a bucket's lock is taken although it is held", "data/storage/lease.py", "if age < seconds:", "if False:",
        "tests/data/storage/test_lease.py::test_a_held_lock_names_host_and_pid_and_a_released_one_is_free[gs]",
    ),
    Mutant(
        "an object is replaced whoever wrote it", "data/storage/conditional.py",
        "if_generation_match=0 if before is None else int(before.tag)", "if_generation_match=None",
        "tests/data/storage/test_lease.py::test_an_object_is_replaced_only_if_nobody_else_wrote[gs]",
    ),
    Mutant(
        "an unreachable bucket counts as a damaged checkpoint", "train/checkpoint/steps.py",
        "if is_remote(folder_of(manager)) and is_unreachable(error):", "if False:",
        "tests/train/test_buckets.py::test_an_unreachable_bucket_does_not_make_a_checkpoint_damaged[gs]",
    ),
    Mutant(
        "an import is turned round", "train/console.py", "out = _plain_console(stderr=False)",
        "import train.run.history; out = _plain_console(stderr=False)",
        "tests/test_house.py::test_a_file_is_short_and_imports_only_from_lower_floors[train/console.py]",
    ),
    Mutant(
        "bits per byte are in nats", "train/evaluation/scoring.py", "nll / math.log(2) /", "nll /",
        "tests/train/evaluation/test_scoring.py::test_metrics_of_a_uniform_model",
    ),
    Mutant(
        "the temperature is fitted on test rows", "train/finetuning/comparison.py",
        '_, validation = predictor.with_decisions(params, run.data.parts["validation"])',
        '_, validation = predictor.with_decisions(params, run.data.parts["test"])',
        "tests/train/finetuning/test_confidence.py::test_test_rows_are_never_used_for_a_choice[labels]",
    ),
    Mutant(
        "the weights of questions with and without an answer are exchanged", "train/tasks/span.py",
        "self.weights[0 if place else 1]", "self.weights[1 if place else 0]",
        "tests/train/tasks/test_tasks.py::test_balanced_questions_with_and_without_an_answer_have_the_same_total_weight",
    ),
    Mutant(
        "unanswerable questions count among the answerable ones", "train/evaluation/metrics.py",
        "mean_interval(f1[answerable])", "mean_interval(f1)",
        "tests/train/evaluation/test_metrics.py::test_squad_metrics_follow_the_official_script",
    ),
    Mutant(
        "passes over the rows shorten a run", "train/finetuning/rows.py",
        "return max(settings.num_steps, math.ceil(", "return max(1, math.ceil(",
        "tests/train/finetuning/test_length.py::test_the_passes_lengthen_a_run_and_never_shorten_it",
    ),
    Mutant(
        "a row is judged by a model that has seen its label", "train/evaluation/linear_svm.py",
        "features[~held_out], labels[~held_out])", "features, labels)",
        "tests/train/evaluation/test_label_errors.py::test_planted_labels_are_found_with_the_right_class[True]",
    ),
    Mutant(
        "similar texts are lost", "data/similar_texts.py", "size - math.ceil(THRESHOLD * size) + 1]",
        "size - math.ceil(THRESHOLD * size)]",
        "tests/data/test_similar_texts.py::test_texts_whose_rarest_pairs_differ_are_found_at_the_threshold[1]",
    ),
    Mutant(
        "a smaller subset is not part of a larger one", "data/labeled.py", 'f"{seed} {e.content}"',
        'f"{seed} {per_class} {e.content}"',
        "tests/train/learning_curve/test_learning_curve.py::"
        "test_subsets_are_nested_and_leave_test_rows_alone[classes0]",
    ),
    Mutant(
        "a gain is clear without its interval", "train/learning_curve/curve.py", "gain(before, after).low > 0",
        "gain(before, after).value > 0",
        "tests/train/learning_curve/test_curve.py::test_a_gain_is_clear_above_its_interval_with_two_seeds"
        "[before1-after1-False]",
    ),
    Mutant(
        "the model card has the metrics of a baseline", "train/huggingface/card_metadata.py", 'get("fine-tuned", {})',
        'get("majority-class baseline", {})',
        "tests/train/huggingface/test_model_card.py::test_the_front_matter_has_what_the_hub_indexes"
        "[classification-text-classification-accuracy]",
    ),
    Mutant(
        "a linear model joins without evidence", "train/evaluation/ensemble.py",
        "if clearly_positive(losses(alone) - losses(both)) else None", "if known.any() else None",
        "tests/train/evaluation/test_ensemble.py::test_a_model_of_noise_does_not_join[60]",
    ),
    Mutant(
        "held-out rows decide whether a linear model joins", "train/finetuning/ensembling.py",
        'fit_weights(validation, margins["validation"])', 'fit_weights(test, margins["test"])',
        "tests/train/finetuning/test_confidence.py::test_test_rows_are_never_used_for_a_choice[labels]",
    ),
    Mutant(
        "predictions leave out the linear model", "train/finetuning/predictor.py", "if ensemble is None:",
        "if ensemble is None or True:",
        "tests/train/finetuning/test_ensembling.py::test_predictions_are_those_of_both",
    ),
    Mutant(
        "a model without bos gets one", "data/tokenizer.py", '"bos_token" in named or not _without_bos(files[-1])',
        '"bos_token" in named or True',
        "tests/data/test_tokenizer.py::test_a_model_without_bos_is_known_by_its_files[config1-False]",
    ),
    Mutant(
        "punctuation is encoded apart from the new line after it", "data/pieces.py", "(?<=[{_LETTERS}0-9])", r"(?<=\S)",
        "tests/data/test_pieces.py::test_tokens_are_those_of_the_whole_text[llama3]",
    ),
    Mutant(
        "sets of classes are too small", "train/evaluation/calibration.py", "* (1.0 - coverage) + 1e-9)",
        "* (1.0 - coverage) + 1.0)",
        "tests/train/evaluation/test_calibration.py::test_too_few_rows_give_sets_of_all_classes",
    ),
    Mutant(
        "a continued output repeats its first rows", "train/prediction/files.py",
        "itertools.chain(head, rows), resumed_at, None", "itertools.chain(head, rows), 0, None",
        "tests/train/prediction/test_predict.py::test_an_interrupted_output_is_continued[.jsonl]",
    ),
    Mutant(
        "a part of an output is written after what a kill left", "data/row_writers.py", "file.seek(self.size)",
        "file.seek(0, 2)", "tests/train/prediction/test_predict.py::test_an_interrupted_output_is_continued[.csv]",
    ),
)  # fmt: skip
_EXPERTS = (
    Mutant(
        "the weights of experts are not renormalized", "model/experts.py",
        "gates_BTK = gates_BTK / gates_BTK.sum(-1, keepdims=True)", "gates_BTK = gates_BTK * 1.0",
        "tests/model/test_experts.py::test_renormalized_gates_sum_to_one_and_others_do_not",
    ),
    Mutant(
        "padding counts as load", "model/experts.py",
        "weights_BT, probabilities_BTE = real_BT.astype(jnp.float32),",
        "weights_BT, probabilities_BTE = jnp.ones(real_BT.shape),",
        "tests/model/test_experts.py::test_scan_remat_and_microbatches_equal_the_dense_reference[softmax]",
    ),
    Mutant(
        "a part of an expert's width is the whole", "model/dispatch.py",
        "return jax.lax.psum(y, _WIDTH_AXES), rounds", "return y, rounds",
        f"{_AXIS}[data 2 x expert 2 x tensor 2-usual]",
    ),
    Mutant(
        "the sums of other devices do not come back", "model/dispatch.py",
        "bring_back=partial(jax.lax.psum_scatter, axis_name=_EXPERT_AXES, scatter_dimension=0, tiled=True),",
        "bring_back=lambda y: jnp.split(y, jax.lax.axis_size(_EXPERT_AXES))[0],", f"{_AXIS}[expert 2-usual]",
    ),
    Mutant(
        "gradients of experts are doubled", "model/grouped.py", "_add_in_blocks(mlp, total, dy_SD,",
        "_add_in_blocks(mlp, total, 2 * dy_SD,", f"{_AXIS}[expert 2-usual]",
    ),
    Mutant(
        "an expert learns from its last block alone", "model/grouped.py", "sum_E.at[group_m].add(",
        "sum_E.at[group_m].set(",
        "tests/model/test_experts.py::test_scan_remat_and_microbatches_equal_the_dense_reference[softmax]",
    ),
    Mutant(
        "what does not fit in a round is dropped", "model/dispatch.py", "return -(-work.load_E.sum() // work.size)",
        "return jnp.minimum(-(-work.load_E.sum() // work.size), 1)", f"{_AXIS}[expert 8-all_to_two]",
    ),
    Mutant(
        "a router's bias is clipped", "train/step.py", "balanced(params, sums.routers.load_E, router_bias_rate)",
        "balanced(params, sums.routers.load_E, router_bias_rate * jnp.minimum(1.0, 1e-3 / grad_norm))",
        f"{_BALANCE}test_a_step_moves_each_bias_by_the_rate_whatever_the_optimizer[{{'clip_norm': 0.001}}]",
    ),
    Mutant(
        "a router's bias weights its expert", "model/experts.py", "jnp.take_along_axis(scores_BTE, experts_BTK",
        "jnp.take_along_axis(ranks_BTE, experts_BTK",
        f"{_BALANCE}test_a_bias_has_no_gradient_and_no_part_in_the_weights",
    ),
    Mutant(
        "a router's bias follows the load", "model/experts.py", "jnp.sign(own_LE.mean(-1, keepdims=True) - own_LE)",
        "jnp.sign(own_LE - own_LE.mean(-1, keepdims=True))", f"{_BALANCE}test_biases_even_out_the_load",
    ),
    Mutant(
        "experts and their width share a mesh axis", "model/sharding.py", '"expert_embed": ("fsdp",)',
        '"expert_embed": ("expert", "fsdp")',
        "tests/train/commands/test_explain_sharding.py::test_the_rules_fit_every_architecture[gpt2]",
    ),
)  # fmt: skip

_CONTINUATIONS = (
    Mutant(
        "common tokens stand where the padding is", "model/continuations.py", "out_axes=1)(padding_B)",
        "out_axes=1)(0 * padding_B)",
        "tests/model/test_continuations.py::test_scores_equal_those_of_whole_texts[all-plain]",
    ),
    Mutant(
        "padding is put between common and last tokens", "train/evaluation/continuations.py",
        "return len(context) >= width", "return True",
        "tests/train/evaluation/test_continuations.py::test_batches_hold_each_context_once_and_whole[little common]",
    ),
)  # fmt: skip

_FILTERS = (
    Mutant(
        "a candidate is removed without a look at its similarity", "data/near_duplicates.py",
        "if similarity >= threshold:", "if rivals:",
        "tests/data/test_near_duplicates.py::test_every_removed_document_has_a_similar_one_that_stays",
    ),
    Mutant(
        "private IP addresses are masked", "data/filters/masks.py", "return found.is_global and", "return True or",
        "tests/data/filters/test_masks.py::test_a_private_address_or_version_number_stays[10.0.0.1]",
    ),
    Mutant(
        "12 words of an evaluation row are enough", "data/filters/contamination.py", "LONGEST, SHORTEST = 13, 8",
        "LONGEST, SHORTEST = 12, 8", "tests/data/filters/test_contamination.py::test_fewer_words_are_not_enough",
    ),
    Mutant(
        "a repeated n-gram counts twice", "data/filters/gopher.py", "            free = place + n",
        "            free = place + 1",
        "tests/data/filters/test_rules.py::test_every_decision_and_reason_is_datatrove_s[gopher_repetition]",
    ),
    Mutant(
        "a card shows what the store masks", "data/preparation/filtering.py", "if reasons and self.options.mask",
        "if reasons and not self.options.mask",
        "tests/data/preparation/test_filters.py::test_what_is_masked_in_the_store_is_masked_in_its_card",
    ),
)  # fmt: skip
_SERVING = (
    Mutant(
        "a prompt in a slot does not start at column 0", "model/slots.py",
        "jnp.roll(new[:, 0], -padding_R[0], axis=2)", "new[:, 0]",
        "tests/model/test_slots.py::test_texts_that_come_and_go_equal_uncached_texts[grouped heads]",
    ),
    Mutant(
        "a slot filters by top-p before top-k", "model/slots.py",
        "ordered_V = jnp.where(ordered_V < kth, -jnp.inf, ordered_V)", "pass",
        "tests/model/test_slots.py::test_each_slot_draws_as_a_batch_with_its_options_would",
    ),
    Mutant(
        "a client that leaves keeps its slot", "train/serving/engine.py", "if answer.generation.left:", "if False:",
        "tests/train/serving/test_completions.py::test_a_client_that_leaves_frees_its_slot[True]",
    ),
    Mutant(
        "any key opens the server", "train/serving/app.py", "and hmac.compare_digest(given.strip(), self._key)", "",
        "tests/train/serving/test_completions.py::test_requests_without_the_key_are_refused",
    ),
    Mutant(
        "a stream shows the start of a stop string", "train/generation/stopping.py",
        "len(text) - longest + 1", "len(text)",
        "tests/train/serving/test_completions.py::test_an_answer_ends_before_the_first_stop_string",
    ),
)  # fmt: skip
_CONTEXT = (
    Mutant(
        "each device has two neighboring halves", "model/zigzag.py", "min(half, 2 * n - 1 - half)", "half // 2",
        f"{_RING}test_zigzag_gives_each_device_a_front_and_a_back_half[2]",
    ),
    Mutant(
        "positions stay in the order of the text", "model/context.py",
        "positions_BT, segments_BT, lengths_BT = map(", "_, segments_BT, lengths_BT = map(",
        f"{_RING}test_positions_and_lengths_travel_with_the_tokens",
    ),
    Mutant(
        "a chunk's sum is not rescaled to a larger maximum", "model/tiles.py",
        "state.o_BKGCH * rescale[..., None] + o_BKGCH", "state.o_BKGCH + o_BKGCH",
        f"{_LONG}test_attention_at_the_end_of_a_row_of_a_million_tokens[0]",
    ),
    Mutant(
        "attention to two sets of keys is added up", "model/ring.py", "o * jnp.exp(lse - total)[..., None]", "o",
        f"{_RING}test_parts_over_different_keys_merge_into_one_softmax[0.0]",
    ),
    Mutant(
        "a pair on the diagonal is skipped", "model/tiles.py", "visible &= keys.start <= q_last",
        "visible &= keys.start < queries.start",
        f"{_RING}test_is_visible_is_true_for_every_pair_that_the_mask_shows[0-True]",
    ),
    Mutant(
        "no pair is skipped", "model/tiles.py", "visible &= keys.start <= q_last", "pass",
        f"{_RING}test_every_device_does_the_same_work[2-ring]",
    ),
    Mutant(
        "gradients of keys stop one device before home", "model/ring.py", "return dq, _passed_on(gradients)",
        "return dq, gradients", f"{_ATTEND}test_context_axis_equals_one_device[ring-context 2-grouped heads]",
    ),
    Mutant(
        "the last bits of long angles are lost", "model/rotary.py",
        "for part in (first, second)", "for part in (first,)",
        f"{_LONG}test_rotary_positions_at_a_million_tokens_equal_float64[llama 3]",
    ),
)  # fmt: skip
MUTANTS = (*_MODEL, *_CONTEXT, *_DATA, *_TRAIN, *_EXPERTS, *_CONTINUATIONS, *_FILTERS, *_SERVING)
