"""Every field, once: meaning, unit and default. A config file is this plus what differs."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the default config: a small language model that trains on a laptop CPU."""
    config = ConfigDict()
    config.seed = 0  # parameters, data order
    config.batch_size = 32  # rows a step, over all devices
    config.sequence_length = 256  # tokens a row
    config.num_steps = 1000  # optimizer steps
    config.microbatches = 1  # gradient accumulation: parts the batch is cut into, one after the other
    # A saved tokenizer's path, or one to train on the data: "bpe:N" (N tokens in all), "bytes", "chars".
    # Read only when config.data.path is text; a token store brings its own.
    config.tokenizer = "bpe:8192"
    config.xla_flags = ""  # added to the environment's XLA_FLAGS before the first device is touched
    config.model = model()
    config.mesh = mesh()
    config.data = data()
    config.task = task()
    config.adapt = adapt()
    config.optimizer = optimizer()
    config.loss = ConfigDict()
    config.loss.z_loss = 0.0  # weight of log(Z)^2
    config.loss.label_smoothing = 0.0  # part of each target's weight that all symbols share
    config.loss.chunk = 0  # positions of a row whose logits a device has at once; divides sequence_length; 0: all
    config.evaluation = ConfigDict()
    config.evaluation.every = 250  # steps between evaluations; the last step always evaluates
    config.evaluation.batches = 0  # batches of the validation split, 0: all of it
    # What patience and checkpoint.best go by, as an evaluation names it: "loss", or a task's figure such as "accuracy".
    config.evaluation.metric = "loss"
    config.evaluation.patience = 0  # evaluations without a better one after which the run ends; 0: it goes on
    config.checkpoint = ConfigDict()
    config.checkpoint.every = 500  # steps between checkpoints, 0: none but for the time; the last step always saves
    config.checkpoint.minutes = 0.0  # after so many without one save too; looked at every logging.every steps; 0: off
    config.checkpoint.keep = 2  # newest checkpoints that stay
    config.checkpoint.keep_period = 0  # checkpoints of steps that it divides stay too; 0: none
    config.checkpoint.best = False  # keep the parameters of the best evaluation too, and end with them
    config.faults = ConfigDict()
    # A step whose loss or gradient is not finite is skipped: it changes nothing but the place in the data. So is one
    # whose gradient's norm, before clipping, is above this; 0: no bound.
    config.faults.max_grad_norm = 0.0
    config.faults.max_consecutive_skips = 10  # give up after this many (at most half of num_steps)
    # What it does then: "stop", or "roll_back" to the checkpoint before them and past all data seen since.
    config.faults.on_divergence = "stop"
    config.faults.hang_seconds = 1800.0  # without a step or a batch of evaluation done that end the run; 0: it waits
    config.logging = ConfigDict()
    config.logging.every = 20  # steps a line of metrics.jsonl
    config.logging.tensorboard = False  # scalars for TensorBoard too (extra: tensorboard)
    return config


def model() -> ConfigDict:
    """Returns `config.model`: Llama-like, 6.9 million parameters with an 8,192-token vocabulary."""
    m = ConfigDict()
    m.vocab_size = 0  # 0: the tokenizer's, rounded up to a multiple of 64 so that meshes divide it
    m.embed_dim = 256
    m.num_layers = 6
    m.num_heads = 4
    m.num_kv_heads = 4  # below num_heads: grouped-query attention
    m.head_dim = 0  # 0: embed_dim / num_heads
    m.mlp_dim = 704
    m.context_length = 0  # positions the model may see; 0: config.sequence_length
    m.norm = "rmsnorm"  # or "layernorm"
    m.norm_position = "pre"  # "pre" or "post" of attention and MLP, or "both"
    m.norm_epsilon = 1e-5
    m.norm_unit_offset = False  # scale by 1 + weight (Gemma)
    m.position = "rope"  # or "learned"
    m.rope_theta = 10000.0
    m.rope_scaling = "none"  # or "llama3", with the four numbers below
    m.rope_scaling_factor = 1.0
    m.rope_low_frequency_factor = 1.0
    m.rope_high_frequency_factor = 4.0
    m.rope_original_context = 8192  # tokens
    m.mlp = "silu_gated"  # or "gelu_gated", "gelu", "relu2"
    m.qk_norm = True  # RMSNorm on each head's queries and keys
    m.qk_norm_joint = False  # one such norm over all heads instead (OLMo 2)
    m.qkv_bias = False
    m.output_bias = False  # of attention's output projection
    m.mlp_bias = False
    m.tie_embeddings = True  # the unembedding is the token embedding
    m.scale_embeddings = False  # multiply embeddings by sqrt(embed_dim) (Gemma)
    m.logit_softcap = 0.0  # 0: off
    m.attention_softcap = 0.0  # 0: off
    m.query_scale = 0.0  # 0: head_dim ** -0.5
    m.sliding_window = (0,)  # tokens a layer looks back, repeated over the layers; 0: all
    m.output_init = "zero"  # projections into the residual stream start at zero, or "scaled" by depth
    # How it runs; may differ between two runs of one checkpoint.
    m.compute_dtype = "auto"  # bfloat16 on accelerators, float32 on CPU; or say which. Parameters are float32.
    m.cache_dtype = "auto"  # keys and values while writing: auto (as they are computed), "bfloat16" or "int8"
    m.attention = "auto"  # "xla" everywhere, "cudnn" on GPU, "splash" (Pallas) on TPU; auto: the fastest that can run
    m.scan_layers = True  # compile one layer and loop; False: unrolled, slower to compile, faster on CPU
    m.remat = "none"  # recompute in the backward pass: "none", "dots" (keep matrix products), "full",
    # or "offload": as full, with the layers' inputs kept in host memory
    return m


def mesh() -> ConfigDict:
    """Returns `config.mesh`: devices an axis; the product is the number of devices, -1 fills what is left."""
    m = ConfigDict()
    m.slice = 1  # TPU slices joined by a slow network (DCN): each holds whole copies, only gradients cross
    m.data = -1  # copies of the model, each with its part of the batch
    m.fsdp = 1  # the batch and the parameters, gathered layer by layer
    m.tensor = 1  # heads, MLP and vocabulary
    m.context = 1  # the length of the rows
    return m


def data() -> ConfigDict:
    """Returns `config.data`: what to train on."""
    d = ConfigDict()
    d.path = ""  # a token store (rootstock prepare), or text: file, glob, hf:NAME; for fine-tuning, labelled rows
    d.text_field = "text"  # column of JSONL, CSV, Parquet
    d.strict = True  # stop at a bad row; False: skip it, and say how many of which kind there were
    d.validation_fraction = 0.1  # when path is text: the part held out
    d.validation_split = "documents"  # hold out whole documents, or the "tail" of each
    d.num_workers = 0  # Grain worker processes that read ahead; 0: threads
    d.prefetch = 2  # batches
    return d


def task() -> ConfigDict:
    """Returns `config.task`: what the head learns (fine-tuning only)."""
    t = ConfigDict()
    t.name = "classification"  # a file of train/tasks/: docs/tasks.md has what each one reads
    t.input = "{text}"  # what the model reads: any text, columns of the row in braces
    t.context = "{context}"  # span: the text whose parts are answers
    t.target = "label"  # column of what is learnt: class or classes, value, tags, answers, text, messages
    t.group = ""  # rows whose text here is the same stay on one side of a split, e.g. "{title}"; empty: the input
    t.test_path = ""  # held-out rows, for the proof; empty: a part of config.data.path, split by the hash of the group
    t.test_fraction = 0.2
    t.test_rows = 0  # held-out rows that are used, drawn at random; 0: all
    t.validation_fraction = 0.05  # of the rest: what is looked at while training
    t.pooling = "last"  # the state a classifier reads: "last" token or "mean" of the example
    t.multi_label = False  # rows have any number of classes: a list, or "a|b"
    t.class_weights = "none"  # or "balanced": a class counts as much as any other, however rare
    t.template = (
        "plain"  # how turns become tokens: "plain", "chatml", "llama3", "gemma", "alpaca", or the "tokenizer"'s
    )
    t.metrics = ("rouge",)  # of generated text: "rouge", "bleu" (with chrF), "squad"
    t.max_new_tokens = 64  # of generated text
    t.beta = 0.1  # DPO: the larger, the closer to the foundation
    t.baseline = True  # also train the same head from random weights, for the before/after table
    # How the foundation is asked without training, for the table; {input} is config.task.input filled in.
    t.prompt = "{input}\nLabel:"
    t.zero_shot_rows = 500  # held-out rows it is asked about, drawn at random; 0: it is not asked
    t.shots = 3  # answered examples before the question; as many as fit the row
    return t


def adapt() -> ConfigDict:
    """Returns `config.adapt`: which parameters train."""
    a = ConfigDict()
    a.method = "full"  # or "head", "last" (layers, and the head), "lora" (factors beside matrices, and the head)
    a.last_layers = 2
    a.rank = 8
    a.alpha = 16.0  # the factors' product is multiplied by alpha / rank
    a.targets = ("query", "value")  # which matrices: also "key", "output" of attention, "gate", "up", "down" of the MLP
    return a


def optimizer() -> ConfigDict:
    """Returns `config.optimizer`."""
    o = ConfigDict()
    o.name = "adamw"  # or "muon" for the layers' matrices, AdamW for embeddings, norms and heads
    o.learning_rate = 1e-3  # peak, of AdamW
    o.muon_learning_rate = 0.02  # peak, of Muon
    o.muon_iterations = 5  # Newton-Schulz iterations; fewer are cheaper and orthogonalise less
    o.schedule = "cosine"  # after warm-up: "cosine", "linear", or "wsd": constant, then a linear decay
    o.warmup_steps = 50
    o.decay_fraction = 0.2  # wsd: the part of num_steps that decays, at the end
    o.final_fraction = 0.1  # the last learning rate, as a part of the peak
    o.beta1 = 0.9
    o.beta2 = 0.95
    o.epsilon = 1e-8
    o.weight_decay = 0.1  # on matrices only: not on norms and biases, nor on embeddings
    o.clip_norm = 1.0  # of the global gradient; 0: off
    o.layer_decay = 1.0  # a layer learns at this part of the rate of the one above it, the embedding at the least
    return o
