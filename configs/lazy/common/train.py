"""The trainer's settings, under the names of Detectron2's ``common/train.py``."""

train = dict(
    output_dir="./output",
    # The backbone that training starts from; it is fetched once, into $FVCORE_CACHE.
    init_checkpoint="detectron2://ImageNetPretrained/torchvision/R-50.pkl",
    # Train although what is frozen is random: for tests and measurements alone.
    freeze_random=False,
    # Negative: drawn at the start and kept in the checkpoint.
    seed=42,
    # 50 epochs of 7,330 iterations.
    max_iter=366500,
    device="cuda",
    # float16 with loss scaling on CUDA, bfloat16 on a CPU.
    amp=dict(enabled=False, precision="auto"),
    # The norm of all gradients together.
    clip_grad=dict(enabled=True, max_norm=0.1, norm_type=2.0),
    # An exponential moving average of the weights, which is evaluated instead of them.
    ema=dict(enabled=False, decay=0.9998),
    checkpointer=dict(period=7330),
    # 0: only at the end.
    eval_period=36650,
    # What Detectron2's own tools/lazyconfig_train_net.py reads besides.
    log_period=20,
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    # Iterations from one picture of detections in TensorBoard to the next; 0: none.
    vis_period=0,
    cudnn_benchmark=False,
    # "highest", "high" or "medium" precision of float32 products on CUDA; "": torch's own.
    float32_precision="",
)
