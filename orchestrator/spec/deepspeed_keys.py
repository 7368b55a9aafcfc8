"""The keys that DeepSpeed 0.19.8 reads of its configuration; DeepSpeed itself is not imported.

At the top it passes over a key that it does not know, inside its own blocks it fails when the workers
start; either way a word spelt wrong is found here first. ``bfloat16``, its older spelling of ``bf16``, is
left out: one block decides the dtype. The lists are compared with the installed DeepSpeed by a test.
"""

from collections.abc import Mapping


def _words(text: str) -> tuple[str, ...]:
    """The words of ``text``: a list that fills its lines."""
    return tuple(text.split())


TOP = _words(
    """
    train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps
    managed_gradient_accumulation gradient_clipping prescale_gradients gradient_predivide_factor
    gradient_allreduce_op communication_data_type seq_parallel_communication_data_type disable_allgather
    optimizer scheduler zero_optimization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer
    bf16 fp16 torch_autocast data_types activation_checkpointing checkpoint datastates_ckpt compile
    data_parallel_size sequence_parallel_size tensor_parallel expert_parallel pipeline
    use_data_before_expert_parallelism hybrid_engine weight_quantization aio autotuning data_efficiency
    dataloader_drop_last vocabulary_size steps_per_print log_level dump_state disable_python_gc
    wall_clock_breakdown memory_breakdown flops_profiler comms_logger timers tensorboard wandb
    csv_monitor comet
    """
)
ZERO = _words(
    """
    stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce
    allgather_partitions allgather_bucket_size overlap_comm compute_grad_norm load_from_fp32_weights
    elastic_checkpoint offload_param offload_optimizer zenflow sub_group_size cpu_offload_param
    cpu_offload_use_pin_memory cpu_offload prefetch_bucket_size stage3_prefetch_bucket_size
    param_persistence_threshold stage3_param_persistence_threshold model_persistence_threshold
    stage3_model_persistence_threshold max_live_parameters stage3_max_live_parameters max_reuse_distance
    stage3_max_reuse_distance gather_16bit_weights_on_model_save
    stage3_gather_16bit_weights_on_model_save module_granularity_threshold
    stage3_module_granularity_threshold use_all_reduce_for_fetch_params
    stage3_use_all_reduce_for_fetch_params allgather_sequential stage3_allgather_sequential
    stage3_gather_fp16_weights_on_model_save ignore_unused_parameters legacy_stage1 round_robin_gradients
    parameter_alignment zero_hpz_partition_size zero_quantized_weights
    zero_quantized_nontrainable_weights zero_quantized_gradients memory_efficient_linear
    pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings enable_sanity_checks
    save_muon_momentum_buffer_in_memory leaf_module
    """
)
KEYS: Mapping[str, tuple[str, ...]] = {
    "": TOP,
    "zero_optimization": ZERO,
    "zero_optimization.offload_optimizer": _words(
        """
        device nvme_path buffer_count pin_memory pipeline_read pipeline_write fast_init ratio super_offload
        cpuadam_cores_perc
        """
    ),
    "zero_optimization.offload_param": _words(
        "device nvme_path buffer_count buffer_size max_in_cpu pin_memory"
    ),
    "bf16": _words(
        """
        enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads
        bf16_optimizer_states
        """
    ),
    "fp16": _words(
        """
        enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis
        consecutive_hysteresis min_loss_scale fp16_master_weights_and_grads
        """
    ),
    "data_types": _words("grad_accum_dtype param_dtype buffer_dtype keep_in_fp32_modules"),
    "optimizer": _words("type params legacy_fusion"),
}
"""By dotted path of a block, every key that it may have; other blocks are DeepSpeed's to check."""

BLOCKS = tuple(path for path in KEYS if path) + _words(
    """
    zero_optimization.zenflow zero_optimization.leaf_module optimizer.params torch_autocast
    activation_checkpointing checkpoint checkpoint.writer checkpoint.parallel_write compile
    tensor_parallel tensor_parallel.tp expert_parallel pipeline hybrid_engine weight_quantization aio
    autotuning data_efficiency flops_profiler comms_logger timers timers.throughput tensorboard wandb
    csv_monitor comet
    """
)
"""Dotted paths of what must be an object where it is given."""
NULLABLE = _words(
    """
    train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps data_parallel_size
    communication_data_type data_types.grad_accum_dtype data_types.param_dtype optimizer.type
    """
)
"""Dotted paths of values whose default in DeepSpeed is null, so that null says nothing."""
