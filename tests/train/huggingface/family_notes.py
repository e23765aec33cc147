"""What each family contains, for the table in docs/huggingface.md."""

NOTES = {
    "gpt2": "GPT-2 in all sizes",
    "llama": "Llama 2, 3, 3.1, 3.2; SmolLM2; all RoPE scalings; attention and MLP biases",
    "mistral": "Mistral 7B with and without a window",
    "qwen2": "Qwen 2 and 2.5; YaRN; windows from a layer on",
    "qwen3": "Qwen 3; YaRN; windows from a layer on",
    "gemma2": "Gemma 2; soft caps, alternating windows",
    "gemma3_text": "Gemma 3 270M and 1B, and the text part of others; five windows per full layer, two RoPE bases",
    "olmo2": "OLMo 2; norms after each block",
    "olmo3": "OLMo 3; three windows per full layer, YaRN on the full ones",
    "smollm3": "SmolLM3; no positions in every fourth layer",
    "phi3": "Phi-3, Phi-4, Phi-4-mini; fused tensors, partial rotation, LongRoPE",
    "granite": "Granite 3 dense; multipliers",
    "granitemoehybrid": "Granite 4 dense, without Mamba layers and experts; multipliers",
    "cohere": "Command R without QK-norm; parallel blocks, logit scale",
    "cohere2": "Command R7B, Command A; windows with RoPE, full layers without positions",
    "stablelm": "StableLM without QK-norm; LayerNorm, partial rotation, sequential or parallel blocks",
    "gpt_neox": "Pythia, GPT-NeoX; parallel blocks, partial rotation",
    "starcoder2": "StarCoder 2; LayerNorm, biases, window",
    "falcon": "Falcon 7B, 40B, 11B with rotary positions; parallel blocks, one or grouped kv heads",
}
