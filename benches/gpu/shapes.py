"""Names and shapes of the tensors that a checkpoint in diffusers layout has, from its configurations alone."""


def linear(name, inputs, outputs, bias=True):
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def conv(name, inputs, outputs, side=3):
    yield f"{name}.weight", (outputs, inputs, side, side)
    yield f"{name}.bias", (outputs,)


def norm(name, channels):
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def text_encoder(config):
    """CLIP's text model, with its projection where the architecture has one."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    embeddings = "text_model.embeddings"
    yield f"{embeddings}.token_embedding.weight", (config["vocab_size"], width)
    yield f"{embeddings}.position_embedding.weight", (config["max_position_embeddings"], width)
    for number in range(config["num_hidden_layers"]):
        layer = f"text_model.encoder.layers.{number}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from linear(f"{layer}.self_attn.{part}", width, width)
        yield from norm(f"{layer}.layer_norm1", width)
        yield from linear(f"{layer}.mlp.fc1", width, inner)
        yield from linear(f"{layer}.mlp.fc2", inner, width)
        yield from norm(f"{layer}.layer_norm2", width)
    yield from norm("text_model.final_layer_norm", width)
    if config["architectures"] == ["CLIPTextModelWithProjection"]:
        yield from linear("text_projection", width, config["projection_dim"], bias=False)


def resnet(name, inputs, outputs, time=None):
    yield from norm(f"{name}.norm1", inputs)
    yield from conv(f"{name}.conv1", inputs, outputs)
    if time:
        yield from linear(f"{name}.time_emb_proj", time, outputs)
    yield from norm(f"{name}.norm2", outputs)
    yield from conv(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from conv(f"{name}.conv_shortcut", inputs, outputs, 1)


def transformer(name, channels, text, layers, as_linear):
    project = linear if as_linear else lambda *given: conv(*given, 1)
    yield from norm(f"{name}.norm", channels)
    yield from project(f"{name}.proj_in", channels, channels)
    for number in range(layers):
        block = f"{name}.transformer_blocks.{number}"
        for attention, context in (("attn1", channels), ("attn2", text)):
            yield from linear(f"{block}.{attention}.to_q", channels, channels, bias=False)
            yield from linear(f"{block}.{attention}.to_k", context, channels, bias=False)
            yield from linear(f"{block}.{attention}.to_v", context, channels, bias=False)
            yield from linear(f"{block}.{attention}.to_out.0", channels, channels)
        for part in ("norm1", "norm2", "norm3"):
            yield from norm(f"{block}.{part}", channels)
        yield from linear(f"{block}.ff.net.0.proj", channels, 8 * channels)  # GEGLU: values and gates of four times
        yield from linear(f"{block}.ff.net.2", 4 * channels, channels)
    yield from project(f"{name}.proj_out", channels, channels)


def unet(config):
    """UNet2DConditionModel of Stable Diffusion's families."""
    channels, layers, text = config["block_out_channels"], config["layers_per_block"], config["cross_attention_dim"]
    first, time, levels = channels[0], 4 * channels[0], len(channels)
    depths = config.get("transformer_layers_per_block", 1)
    depths = depths if isinstance(depths, list) else [depths] * levels
    as_linear = config.get("use_linear_projection", False)
    yield from conv("conv_in", config["in_channels"], first)
    yield from linear("time_embedding.linear_1", first, time)
    yield from linear("time_embedding.linear_2", time, time)
    if config.get("addition_embed_type"):
        yield from linear("add_embedding.linear_1", config["projection_class_embeddings_input_dim"], time)
        yield from linear("add_embedding.linear_2", time, time)
    skips = [first]
    for level, kind in enumerate(config["down_block_types"]):
        block, width = f"down_blocks.{level}", channels[level]
        for number in range(layers):
            yield from resnet(f"{block}.resnets.{number}", skips[-1], width, time)
            if kind.startswith("CrossAttn"):
                yield from transformer(f"{block}.attentions.{number}", width, text, depths[level], as_linear)
            skips.append(width)
        if level < levels - 1:
            yield from conv(f"{block}.downsamplers.0.conv", width, width)
            skips.append(width)
    width = channels[-1]
    yield from resnet("mid_block.resnets.0", width, width, time)
    yield from transformer("mid_block.attentions.0", width, text, depths[-1], as_linear)
    yield from resnet("mid_block.resnets.1", width, width, time)
    for level, kind in enumerate(config["up_block_types"]):
        block, below, width = f"up_blocks.{level}", width, channels[levels - 1 - level]
        for number in range(layers + 1):
            inputs = (below if number == 0 else width) + skips.pop()
            yield from resnet(f"{block}.resnets.{number}", inputs, width, time)
            if kind.startswith("CrossAttn"):
                depth = depths[levels - 1 - level]
                yield from transformer(f"{block}.attentions.{number}", width, text, depth, as_linear)
        if level < levels - 1:
            yield from conv(f"{block}.upsamplers.0.conv", width, width)
    yield from norm("conv_norm_out", first)
    yield from conv("conv_out", first, config["out_channels"])


def vae_middle(name, width):
    yield from resnet(f"{name}.resnets.0", width, width)
    yield from norm(f"{name}.attentions.0.group_norm", width)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from linear(f"{name}.attentions.0.{part}", width, width)
    yield from resnet(f"{name}.resnets.1", width, width)


def vae(config):
    """AutoencoderKL."""
    channels, layers, latent = config["block_out_channels"], config["layers_per_block"], config["latent_channels"]
    last = len(channels) - 1
    yield from conv("encoder.conv_in", config["in_channels"], channels[0])
    width = channels[0]
    for level, outputs in enumerate(channels):
        for number in range(layers):
            yield from resnet(f"encoder.down_blocks.{level}.resnets.{number}", width, outputs)
            width = outputs
        if level < last:
            yield from conv(f"encoder.down_blocks.{level}.downsamplers.0.conv", width, width)
    yield from vae_middle("encoder.mid_block", width)
    yield from norm("encoder.conv_norm_out", width)
    yield from conv("encoder.conv_out", width, 2 * latent)
    yield from conv("quant_conv", 2 * latent, 2 * latent, 1)
    yield from conv("post_quant_conv", latent, latent, 1)
    yield from conv("decoder.conv_in", latent, width)
    yield from vae_middle("decoder.mid_block", width)
    for level, outputs in enumerate(reversed(channels)):
        for number in range(layers + 1):
            yield from resnet(f"decoder.up_blocks.{level}.resnets.{number}", width, outputs)
            width = outputs
        if level < last:
            yield from conv(f"decoder.up_blocks.{level}.upsamplers.0.conv", width, width)
    yield from norm("decoder.conv_norm_out", width)
    yield from conv("decoder.conv_out", width, config["out_channels"])
