"""All config fields with their meaning, unit and default. A config file is this plus what differs.

Set a field on the command line with --config.FIELD=VALUE, e.g. --config.optimizer.learning_rate=3e-4.
`rootstock COMMAND --help` prints the fields that a command reads; `rootstock config` prints a resolved config.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the default config: a small language model that trains on a laptop CPU."""
    config = ConfigDict()
    config.seed = 0  # random seed of parameter initialization and data order
    config.batch_size = 32  # rows per step, over all devices
    config.sequence_length = 256  # tokens per row
    config.num_steps = 1000  # optimizer steps; how a run goes on for longer: docs/run-directory.md
    config.microbatches = 1  # gradient accumulation: split each batch into this many parts; must divide batch_size
    # "bpe:N" (N tokens in total), "bytes" or "chars" to train a tokenizer on the text, or the path of a saved one.
    # Used only when data.path is text: a token store contains its tokenizer.
    config.tokenizer = "bpe:8192"
    config.xla_flags = ""  # appended to the environment variable XLA_FLAGS before JAX initializes its devices
    config.model = model()
    config.mesh = mesh()
    config.data = data()
    config.task = task()
    config.adapt = adapt()
    config.optimizer = optimizer()
    config.loss = loss()
    config.evaluation = evaluation()
    config.checkpoint = checkpoint()
    config.faults = faults()
    config.logging = logging()
    return config


def model() -> ConfigDict:
    """Returns `config.model`: the architecture, and how it runs.

    The default is Llama-like and has about 6.9 million parameters with an 8,192-token vocabulary.
    """
    m = ConfigDict()
    m.vocab_size = 0  # tokens in the vocabulary; 0: the tokenizer's size, rounded up to a multiple of 64
    m.embed_dim = 256  # width of the residual stream
    m.num_layers = 6  # transformer layers
    m.num_heads = 4  # query heads per layer
    m.num_kv_heads = 4  # key and value heads per layer; fewer than num_heads: grouped-query attention
    m.head_dim = 0  # width of each head; 0: embed_dim / num_heads
    m.mlp_dim = 704  # hidden width of the MLP
    m.context_length = 0  # longest input in tokens; 0: sequence_length
    m.norm = "rmsnorm"  # "rmsnorm" or "layernorm"
    m.norm_position = "pre"  # norms "pre" or "post" attention and MLP, or "both"
    m.norm_epsilon = 1e-5  # added to the variance in norms
    m.norm_unit_offset = False  # norms scale by 1 + weight instead of weight (Gemma)
    m.norm_bias = True  # with layernorm: norms have a bias
    m.parallel = "none"  # MLP after attention ("none"), or beside it on the same input, with "one_norm" or "two_norms"
    m.position = "rope"  # position encoding: "rope" (rotary) or "learned"
    m.rope_theta = 10000.0  # base of the rotary frequencies
    m.rope_fraction = 1.0  # fraction of each head's columns that is rotated, from its first column on
    m.rope_scaling = "none"  # for longer contexts: "none", "linear", "dynamic" (NTK), "llama3", "yarn" or "longrope"
    m.rope_scaling_factor = 1.0  # how much longer the context becomes
    m.rope_original_context = 8192  # context length before scaling, in tokens
    m.rope_low_frequency_factor = 1.0  # llama3: wavelengths longer than rope_original_context / this are scaled
    m.rope_high_frequency_factor = 4.0  # llama3: wavelengths shorter than rope_original_context / this are not scaled
    m.rope_beta_fast = 32.0  # yarn: frequencies with more turns than this in the original context are not scaled
    m.rope_beta_slow = 1.0  # yarn: frequencies with fewer turns than this in the original context are scaled
    m.rope_round_range = True  # yarn: round the columns at which these ranges end
    m.rope_attention_factor = 0.0  # yarn, longrope: factor of the rotated queries and keys; 0: that of the paper
    m.rope_short_factors = ()  # longrope: divisor of each frequency in texts up to rope_original_context
    m.rope_long_factors = ()  # longrope: divisor of each frequency in longer texts
    m.rope_layers = ("rope",)  # rotary positions of each layer, repeated over the layers: "rope", "local" or "none"
    m.rope_local_theta = 10000.0  # base of the rotary frequencies of "local" layers, which have no scaling
    m.mlp = "silu_gated"  # "silu_gated" (SwiGLU), "gelu_gated" (GeGLU), "gelu", "gelu_exact" (erf) or "relu2"
    m.qk_norm = True  # normalize the queries and keys of each head with RMSNorm
    m.qk_norm_joint = False  # with qk_norm: one norm over all heads instead of one per head (OLMo 2)
    m.qkv_bias = False  # bias in the query, key and value projections
    m.output_bias = False  # bias in attention's output projection
    m.mlp_bias = False  # bias in the MLP's projections
    m.tie_embeddings = True  # share one table between token embedding and unembedding
    m.scale_embeddings = False  # multiply embeddings by sqrt(embed_dim) (Gemma)
    m.embedding_scale = 1.0  # embeddings are multiplied by this
    m.residual_scale = 1.0  # the outputs of attention and MLP are multiplied by this
    m.logit_scale = 1.0  # logits are multiplied by this, before the softcap
    m.logit_softcap = 0.0  # logits become cap * tanh(logits / cap); 0: off
    m.attention_softcap = 0.0  # attention scores become cap * tanh(scores / cap); 0: off
    m.query_scale = 0.0  # attention scores are multiplied by this; 0: head_dim ** -0.5
    m.sliding_window = (0,)  # attention window of each layer in tokens, repeated over the layers; 0: full attention
    model_experts(m)
    m.output_init = "zero"  # initialize projections into the residual stream to "zero", or "scaled" by depth
    model_execution(m)
    return m


def model_execution(m: ConfigDict) -> None:
    """Adds the fields that change how the model runs, not what it computes."""
    # "float32" or "bfloat16", of products; parameters stay float32. "auto": bfloat16 on accelerators, and on one CPU
    # with instructions for it (avx512_bf16) and JAX 0.12.
    m.compute_dtype = "auto"
    m.cache_dtype = "auto"  # KV cache: "bfloat16" or "int8"; "auto": compute_dtype
    m.attention = "auto"  # "xla", "cudnn" (GPU) or "splash" (TPU, Pallas); "auto": the fastest that can run here
    # Over mesh.context, keys and values pass from device to device ("ring"), or each device gathers all ("all_gather").
    m.context_attention = "auto"  # "auto": the ring for more than 1 GiB of keys and values per layer and device
    m.scan_layers = True  # compile one layer and loop over it; False: unroll (slower to compile, faster on CPU and GPU)
    # Activations recomputed in the backward pass: "none", "dots" (all but matrix products), "full" (all but the layers'
    # inputs), or "offload" (as "full", with the layers' inputs kept in host memory).
    m.remat = "none"


def model_experts(m: ConfigDict) -> None:
    """Adds the fields of experts: a router chooses experts_per_token of num_experts MLPs for each token."""
    m.num_experts = 0  # experts per layer; 0: every layer has one MLP
    m.experts_per_token = 2  # experts that each token goes to
    m.expert_dim = 0  # hidden width of each expert; 0: mlp_dim
    m.shared_expert_dim = 0  # hidden width of an MLP beside the experts that every token goes to; 0: none
    m.dense_layers = 0  # the first layers, which have an MLP of mlp_dim instead of experts
    m.expert_every = 1  # of so many of the other layers, only the last has experts
    # Weight of a chosen expert: its "softmax" or "sigmoid" among all experts, or "softmax_top": among the chosen ones.
    m.router = "softmax"
    m.router_renormalize = True  # divide the weights of a token's experts by their sum
    # A bias per expert, added to the scores for the choice of experts but not to their weights (DeepSeek-V3). Training
    # moves it by optimizer.router_bias_rate.
    m.router_bias = False


def mesh() -> ConfigDict:
    """Returns `config.mesh`: devices per axis, whose product is the device count; -1: all that remain."""
    m = ConfigDict()
    m.slice = 1  # TPU slices connected by the data center network: one model replica each, only gradients cross it
    m.data = -1  # data parallelism: model replicas, each with a part of the batch
    m.expert = 1  # expert parallelism: shards the experts, whole; for everything else it is like fsdp
    m.fsdp = 1  # FSDP: shards the batch and the parameters, which are gathered layer by layer
    m.tensor = 1  # tensor parallelism: shards heads, MLP and vocabulary
    m.context = 1  # context parallelism: shards the sequence
    return m


def data() -> ConfigDict:
    """Returns `config.data`: what to train on."""
    d = ConfigDict()
    # Pre-training: a token store (rootstock prepare), or text (a file, a glob, or hf:NAME:CONFIG:SPLIT). Fine-tuning:
    # labeled rows.
    d.path = ""
    # Instead of path, pre-training on several sources: ((NAME, PATH, WEIGHT), ...), each PATH as data.path. Each source
    # gives the part of the rows that its weight is of the sum of weights (docs/mixtures.md).
    d.mixture = ()
    # New weights from a step on: ((STEP, {NAME: WEIGHT, ...}), ...) in rising order, each with all sources. When a run
    # resumes, the weights of steps that are not done may change, here and in mixture.
    d.mixture_schedule = ()
    d.max_epochs = 0.0  # pre-training: refuse to read a source more often than this in num_steps; 0: no limit
    d.text_field = "text"  # column with the text in JSONL, CSV and Parquet files
    d.strict = True  # stop at an invalid row; False: skip such rows and report how many were skipped, by kind
    d.validation_fraction = 0.1  # part of the text that is held out for evaluation, when path is text
    d.validation_split = "documents"  # hold out whole "documents", or the "tail" of each document
    d.num_workers = 0  # Grain worker processes that load batches; 0: threads
    d.prefetch = 2  # batches loaded ahead
    # Local directory that a token store in a bucket is copied to before training, once per host; empty: read in place.
    d.cache = ""
    return d


def task() -> ConfigDict:
    """Returns `config.task`: the task to fine-tune for, its columns and its baselines."""
    t = ConfigDict()
    t.name = "classification"  # one of train/tasks/, or the path of a Python file with a task (docs/tasks.md)
    t.input = "{text}"  # pattern of the model's input; {NAME} inserts a column of the row, {NAME.FIELD} a nested one
    t.context = "{context}"  # span: pattern of the text that contains the answers
    t.target = "label"  # column with the target: class or classes, number, tags, answers, text or messages
    # Rows for which this pattern gives the same text stay on one side of a split, e.g. "{title}"; empty: the input, or
    # the conversation without system messages.
    t.group = ""
    t.test_path = ""  # held-out rows for the final comparison; empty: split data.path by a hash of the group
    t.test_fraction = 0.2  # part of the rows held out for the final comparison, when test_path is empty
    t.test_rows = 0  # held-out rows to use, drawn at random; 0: all
    t.validation_fraction = 0.05  # part of the remaining rows that is evaluated during training
    # Training rows of each class to use, drawn by config.seed, and as many validation rows in proportion; 0: all. Rows
    # that do not have one class each count as one class together.
    t.labels_per_class = 0
    # Train for so many passes over the training rows where that takes more steps than num_steps; 0: num_steps.
    t.min_epochs = 0.0
    t.missing = "error"  # null or NaN where text is expected: an "error" (see data.strict), or an "empty" text
    # Rules by which rows are cleaned, grouped and split: 2, or 1 for those before classes were kept in every split and
    # conversations grouped by their content. A run that resumes keeps its own.
    t.row_rules = 2
    # "causal": tokens attend to themselves and earlier tokens, as in pre-training. "bidirectional": to later ones too,
    # for heads that do not write text; windows then reach both ways. "auto": what was better in docs/results.md.
    t.attention = "auto"
    # State that a classifier reads: that of the "last" token, or the "mean" over the example. "auto": the last token
    # with causal attention, the mean with bidirectional.
    t.pooling = "auto"
    t.multi_label = False  # each row has any number of classes, as a list or as "a|b"
    t.class_weights = "none"  # "none", or "balanced": weight each class by its inverse frequency
    t.out_of_scope = ""  # class of texts that belong to none of the others; such rows are also scored apart
    t.center = True  # regression: train on the difference from the mean, which few heads of transformers can add
    # Chat template: "plain", "plain_chat" (with "User: " and "Assistant: "), "chatml", "llama3", "gemma", "alpaca", or
    # "tokenizer" for the tokenizer's own. For tasks on conversations, "plain" stands for "plain_chat".
    t.template = "plain"
    t.metrics = ("rouge",)  # metrics of generated text: "rouge", "bleu" (with chrF), "squad"
    t.max_new_tokens = 64  # longest generated text in tokens
    t.beta = 0.1  # DPO: strength of the pull toward the base model
    t.baseline = True  # also train the same head from random weights, as a baseline
    # Also score what needs no model: TF-IDF with a linear SVM for classes and tags, the first sentences for a summary.
    t.alternatives = True
    # Predict with the fine-tuned model and the linear SVM together where the validation rows, which decide the weights,
    # show that this is better than the model alone; needs task.alternatives.
    t.ensemble = True
    t.prompt = "{input}\nLabel:"  # prompt of the zero-shot and few-shot baselines; {input} is the filled-in task.input
    t.zero_shot_rows = 500  # held-out rows for these baselines, drawn at random; 0: skip them
    t.shots = 3  # examples in the few-shot prompt; fewer where the row has no room
    return t


def adapt() -> ConfigDict:
    """Returns `config.adapt`: which parameters to train."""
    a = ConfigDict()
    a.method = "full"  # "full", "head", "last" (last layers and head) or "lora" (low-rank factors and head)
    a.last_layers = 2  # last: number of layers to train
    a.rank = 8  # lora: rank of the factors
    a.alpha = 16.0  # lora: the product of the factors is multiplied by alpha / rank
    # lora: matrices that get factors, of "query", "key", "value", "output" (attention), "gate", "up", "down" (MLP).
    a.targets = ("query", "value")
    a.base_quantization = "none"  # lora: the frozen matrices in "int8" or 4 bits ("nf4": QLoRA); "none": not quantized
    # First continue pre-training for this many steps on the texts of the training rows, without held-out rows; 0: off.
    a.task_text_steps = 0
    return a


def optimizer() -> ConfigDict:
    """Returns `config.optimizer`: optimizer and learning-rate schedule."""
    o = ConfigDict()
    o.name = "adamw"  # "adamw", or "muon" for the layers' matrices with AdamW for embeddings, norms and heads
    # Peak learning rate of AdamW. 0: in fine-tuning, chosen by adapt.method and the model's width (docs/tasks.md).
    o.learning_rate = 1e-3
    o.muon_learning_rate = 0.02  # peak learning rate of Muon
    o.muon_iterations = 5  # Newton-Schulz iterations; fewer are cheaper and orthogonalize less accurately
    # After warmup: "cosine" or "linear" decay, "constant", or "wsd" (constant, then linear decay).
    o.schedule = "cosine"
    o.warmup_steps = 50  # steps of linear warmup; less than num_steps, with wsd before the decay
    o.decay_fraction = 0.2  # wsd: part of num_steps in which the learning rate decays, at the end
    o.final_fraction = 0.1  # final learning rate, as a fraction of the peak
    o.beta1 = 0.9  # AdamW: decay rate of the first moment
    o.beta2 = 0.95  # AdamW: decay rate of the second moment
    # How moments are stored between steps (docs/planning.md); a step computes with them in float32. First moment:
    # "float32", "bfloat16" (2 bytes less per trained parameter) or "int8" (3 bytes less).
    o.first_moment = "float32"
    # Second moment of AdamW: "float32", "factored" (two vectors per matrix, as Adafactor: 4 bytes less per parameter)
    # or "int8" (3 bytes less).
    o.second_moment = "float32"
    o.epsilon = 1e-8  # added to the denominator of the update
    o.weight_decay = 0.1  # applied to the layers' matrices only, not to norms, biases and embeddings
    o.clip_norm = 1.0  # clip the gradient to this global norm; 0: off
    # With model.router_bias: after each step, the bias of each expert with fewer tokens than its layer's mean rises by
    # this, and that of each with more falls. This balances the load without an auxiliary loss; 0: the biases stay.
    o.router_bias_rate = 1e-3
    # Exponential average of the trained parameters: each step, average = ema * average + (1 - ema) * parameters, with a
    # smaller factor in the first steps. Evaluation, the best checkpoint, generation and exports use it; 0: off.
    o.ema = 0.0
    # Layer-wise learning-rate decay: each layer's rate is this factor times that of the layer above.
    o.layer_decay = 1.0
    return o


def loss() -> ConfigDict:
    """Returns `config.loss`: options of the cross-entropy loss."""
    c = ConfigDict()
    c.z_loss = 0.0  # weight of log(Z)^2, which keeps the softmax normalizer Z near 1; 0: off
    # Experts: weight of log(Z)^2 of the routers' logits; 0: off. Per target, as z_loss: the mean over the tokens of its
    # row, summed over layers.
    c.router_z_loss = 0.0
    # Experts: weight of the load-balancing loss, likewise per target; it is 1 per layer where the load is even; 0: off.
    c.balance_loss = 0.0
    c.label_smoothing = 0.0  # part of each target's probability that is spread over all tokens or classes; 0: off
    # Compute logits for this many positions per row at a time; must divide sequence_length. 0: all, or on one CPU 4
    # million logits, but at least 512 tokens; for the tasks generation and chat an eighth of a row, as chunks outside
    # of the loss are skipped.
    c.chunk = 0
    return c


def evaluation() -> ConfigDict:
    """Returns `config.evaluation`: evaluation during training."""
    e = ConfigDict()
    e.every = 250  # steps between evaluations; the last step is always evaluated
    e.batches = 0  # batches of the validation split per evaluation; 0: all
    # Metric for patience and checkpoint.best: "loss", or one of the task's, e.g. "accuracy". A run that resumes with
    # checkpoint.best keeps its metric and batches.
    e.metric = "loss"
    e.patience = 0  # early stopping: stop after this many evaluations without improvement; 0: off
    return e


def checkpoint() -> ConfigDict:
    """Returns `config.checkpoint`: when to save and what to keep."""
    c = ConfigDict()
    c.every = 500  # steps between checkpoints; the last step is always saved; 0: save by time only
    c.minutes = 0.0  # also save after this many minutes (checked every logging.every steps); 0: off
    c.keep = 2  # newest checkpoints to keep
    c.keep_period = 0  # also keep every checkpoint whose step is a multiple of this; 0: off
    # Local directory, shared by all processes of the run, for more frequent checkpoints than those in a bucket;
    # the newest of both is restored; empty: none.
    c.local_path = ""
    c.local_every = 100  # steps between local checkpoints
    c.best = False  # keep the parameters of the best evaluation, and use them as the run's result
    return c


def faults() -> ConfigDict:
    """Returns `config.faults`: what to do about bad steps and hangs (docs/faults.md)."""
    f = ConfigDict()
    # Skip a step whose gradient norm before clipping exceeds this; 0: no limit. Steps with a loss or gradient that is
    # not finite are always skipped: a skipped step leaves parameters and optimizer state unchanged.
    f.max_grad_norm = 0.0
    f.max_consecutive_skips = 10  # give up after this many consecutive skipped steps (at most half of num_steps)
    # After max_consecutive_skips: "stop", or "roll_back" to the checkpoint before them and skip the data read since.
    f.on_divergence = "stop"
    f.hang_seconds = 1800.0  # abort if no step or evaluation batch finishes for this many seconds; 0: never
    return f


def logging() -> ConfigDict:
    """Returns `config.logging`: what to log."""
    g = ConfigDict()
    g.every = 20  # log to metrics.jsonl every this many steps
    g.tensorboard = False  # also write scalars for TensorBoard (extra: tensorboard)
    g.tracker = "none"  # also send metrics and results to "wandb" or "trackio" (extras of the same names)
    g.project = "rootstock"  # project of the tracker
    # Profile the steps (FIRST, COUNT), counted from 1, for rootstock profile; leave out the first steps, which compile;
    # (): none.
    g.profile_steps = ()
    return g
