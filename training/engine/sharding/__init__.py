"""How a stage is spread over processes: single, ddp, fsdp2 or fairscale, applied from outside the model.

The model knows nothing of this package. Every engine runs the stage's step from inside one module's forward, averages
gradients over processes, and leaves parameters under their own names, so a checkpoint of one engine loads in another.

    single      one process
    ddp         whole copies, gradients averaged; the faster choice on CPUs (measured) and for models that fit
    fsdp2       torch `fully_shard`: parameters, gradients and optimiser state sharded; frozen modules stay whole
    fairscale   OSS + ShardedDataParallel: optimiser state and gradients sharded, parameters whole
"""
