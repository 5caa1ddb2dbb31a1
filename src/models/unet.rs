//! The denoising UNet of the Stable Diffusion family (Rombach et al. 2022), any size of it.
//!
//! The file is a little long because the network is defined once and in one place, from its blocks to its attention.

use std::slice;

use candle_core::{DType, Device, Tensor};

use super::{UnetConfig, unet_config::TimeIn};
use crate::{
    Result,
    nn::{
        Activation, After, Conv2d, Doubling, EmbeddingMlp, GroupNorm, LayerNorm, Linear, NormalConv, ResnetBlock,
        ResnetSizes, Sinusoids, Weights, attention, feature_map, on_drawing_threads,
    },
};

/// Added to the variance of a transformer's norms, in diffusers' code.
const TRANSFORMER_NORM_EPSILON: f64 = 1e-6;
const LAYER_NORM_EPSILON: f32 = 1e-5;
/// The guidance scale's sinusoids are of so many times it, in diffusers' code.
const GUIDANCE_FACTOR: f64 = 1000.0;
/// A transformer's perceptron is this many times as wide as its tokens.
const PERCEPTRON_FACTOR: usize = 4;

/// What the UNet is told of the picture to draw.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// The text's tokens: `(b, n, cross_attention_dim)`.
    pub text: Tensor,
    /// What SDXL's is told besides.
    pub added: Option<Added>,
}

/// What is added to the timestep's embedding.
#[derive(Debug, Clone)]
pub struct Added {
    /// The pooled text: `(b, projection_dim)`.
    pub pooled: Tensor,
    /// For each of the batch: original height and width, crop's top and left, target height and width, in pixels.
    pub sizes: Vec<[f64; 6]>,
}

/// What is the same at every step of a drawing, computed once: [`Unet::prepare`]. Clones share the numbers.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What each attention to the text looks at, in the order in which a pass meets them.
    text: Vec<Seen>,
    /// The embedding of what SDXL's is told besides: `(b, width)`.
    added: Option<Tensor>,
    /// What the guidance scale adds to the timestep's sinusoids: `(b, width)`.
    guidance: Option<Tensor>,
}

impl Prepared {
    /// What a batch of images is told, from what each is told alone: the first row of each, then the second of each, and so
    /// on. All are of one network, with equally many rows and tokens.
    ///
    /// # Errors
    ///
    /// Texts of different lengths.
    pub fn join(images: &[&Self]) -> Result<Self> {
        if let [alone] = images {
            return Ok((*alone).clone());
        }
        let seen = |number: usize| {
            let of = |part: fn(&Seen) -> &Tensor| rows(images.iter().map(|image| part(&image.text[number])).collect());
            Ok(Seen { keys: of(|seen| &seen.keys)?, values: of(|seen| &seen.values)? })
        };
        let count = images.first().map_or(0, |first| first.text.len());
        let joined = |part: fn(&Self) -> Option<&Tensor>| -> Result<Option<Tensor>> {
            let parts: Vec<&Tensor> = images.iter().filter_map(|image| part(image)).collect();
            if parts.is_empty() { Ok(None) } else { rows(parts).map(Some) }
        };
        Ok(Self {
            text: (0..count).map(seen).collect::<Result<_>>()?,
            added: joined(|image| image.added.as_ref())?,
            guidance: joined(|image| image.guidance.as_ref())?,
        })
    }
}

impl Prepared {
    /// What the last `count` rows are told.
    ///
    /// # Errors
    ///
    /// Fewer rows.
    pub fn last(&self, count: usize) -> Result<Self> {
        let last = |rows: &Tensor| Ok::<_, crate::Error>(rows.narrow(0, rows.dim(0)?.saturating_sub(count), count)?);
        let seen = |seen: &Seen| Ok(Seen { keys: last(&seen.keys)?, values: last(&seen.values)? });
        Ok(Self {
            text: self.text.iter().map(seen).collect::<Result<_>>()?,
            added: self.added.as_ref().map(last).transpose()?,
            guidance: self.guidance.as_ref().map(last).transpose()?,
        })
    }
}

/// The first row of each, then the second of each, and so on.
fn rows(parts: Vec<&Tensor>) -> Result<Tensor> {
    let count = parts[0].dim(0)?;
    let of_row = |row| parts.iter().map(move |part| part.narrow(0, row, 1));
    let rows = (0..count).flat_map(of_row).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::cat(&rows, 0)?)
}

/// A denoising UNet.
#[derive(Debug)]
pub struct Unet {
    sinusoids: Sinusoids,
    time: EmbeddingMlp,
    added: Option<(Sinusoids, EmbeddingMlp)>,
    guidance: Option<(Sinusoids, Linear)>,
    centres: bool,
    conv_in: Conv2d,
    down: Vec<Block<Conv2d>>,
    middle: Option<Middle>,
    up: Vec<Block<Doubling>>,
    out: NormalConv,
    /// What the first and last layers compute in: their rounding would be in every step's result.
    edge_dtype: DType,
    dtype: DType,
    device: Device,
}

impl Unet {
    /// Reads the network's tensors, under diffusers' names.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(config: &UnetConfig, weights: &Weights) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, time) = (channels[0], config.time_width());
        let added = match (config.addition_time_embed_dim, config.projection_class_embeddings_input_dim) {
            (Some(width), Some(inputs)) if config.addition_embed_type.is_some() => {
                let mlp = EmbeddingMlp::new(&weights.exact().at("add_embedding"), inputs, time)?;
                Some((config.sinusoids(width), mlp))
            }
            _ => None,
        };
        let (down, skips) = down_blocks(config, weights)?;
        let edges = weights.exact();
        let guidance = config.guidance_sinusoids().map(|sinusoids| -> Result<_> {
            let project = Linear::without_bias(&edges.at("time_embedding.cond_proj"), sinusoids.width, first)?;
            Ok((sinusoids, project))
        });
        let norm_out = GroupNorm::new(&edges.at("conv_norm_out"), first, config.norm_num_groups, config.norm_eps)?;
        Ok(Self {
            sinusoids: config.sinusoids(first),
            time: EmbeddingMlp::new(&edges.at("time_embedding"), first, time)?,
            added,
            guidance: guidance.transpose()?,
            centres: config.center_input_sample,
            conv_in: Conv2d::new(&edges.at("conv_in"), config.in_channels, first, config.conv_in_kernel)?,
            down,
            middle: config
                .mid_block_type
                .as_ref()
                .map(|_| Middle::new(config, &weights.at("mid_block")))
                .transpose()?,
            up: up_blocks(config, weights, skips)?,
            out: NormalConv::with_kernel(
                norm_out,
                &edges.at("conv_out"),
                (first, config.out_channels),
                config.conv_out_kernel,
            )?,
            edge_dtype: edges.dtype(),
            dtype: weights.dtype(),
            device: weights.device().clone(),
        })
    }

    /// What a pass makes of the conditioning whatever the latents and the timestep are: the text's keys and values, and
    /// the embedding of what is added.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn prepare(&self, conditioning: &Conditioning) -> Result<Prepared> {
        let text = conditioning.text.to_dtype(self.dtype)?;
        let down = self.down.iter().flat_map(|block| &block.layers).filter_map(|layer| layer.transformer.as_ref());
        let up = self.up.iter().flat_map(|block| &block.layers).filter_map(|layer| layer.transformer.as_ref());
        let middle =
            self.middle.as_ref().and_then(|middle| middle.attending.as_ref()).map(|(transformer, _)| transformer);
        let transformers = down.chain(middle).chain(up);
        let attentions = transformers.flat_map(|transformer| &transformer.layers).flat_map(TransformerLayer::to_text);
        Ok(Prepared {
            text: attentions.map(|attention| attention.see(&text)).collect::<Result<_>>()?,
            added: self.embed_added(conditioning)?,
            guidance: None,
        })
    }

    /// What a pass makes of a guidance scale besides, for one image: a network that is told it has one pass a step. Others
    /// are left as they are.
    ///
    /// # Errors
    ///
    /// The device has no room.
    pub fn tell_guidance(&self, prepared: Prepared, scale: f64) -> Result<Prepared> {
        let Some((sinusoids, project)) = &self.guidance else { return Ok(prepared) };
        // The paper's ω counts from no guidance, where the scale is 1 (Luo et al. 2023, section 4.2).
        let numbers = [GUIDANCE_FACTOR * (scale - 1.0)];
        let sinusoids = sinusoids.of(&numbers, &self.device)?.to_dtype(self.edge_dtype)?;
        Ok(Prepared { guidance: Some(project.forward(&sinusoids)?), ..prepared })
    }

    /// The network's output for latents of total variance 1: `(b, in_channels, h, w)` to `(b, out_channels, h, w)` f32.
    /// All of the batch are at one timestep; `prepared` is of this network.
    ///
    /// Where `prepared` is of a larger batch, as of a guidance pair, the output is of that, as if latents had been repeated:
    /// what the network does before it first looks at the text is the same for all, and done once.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward(&self, latents: &Tensor, timestep: f64, prepared: &Prepared) -> Result<Tensor> {
        on_drawing_threads(latents.device(), || self.pass(latents, timestep, prepared))
    }

    fn pass(&self, latents: &Tensor, timestep: f64, prepared: &Prepared) -> Result<Tensor> {
        let time = self.embed(timestep, latents, prepared)?;
        let time = Activation::Silu.forward(&time)?.to_dtype(self.dtype)?;
        let mut context = Context { time, text: prepared.text.iter() };
        // What is added to the timestep differs from the first layer on.
        let latents = match &prepared.added {
            Some(added) => feature_map::repeat(latents, added.dim(0)?)?,
            None => latents.clone(),
        };
        let latents = if self.centres { ((latents * 2.0)? - 1.0)? } else { latents };
        // In the edges' type all that blocks add to the map stays unrounded on its way through them.
        let mut x = self.conv_in.forward(&feature_map::from_planes(&latents.to_dtype(self.edge_dtype)?)?)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            for layer in &block.layers {
                x = layer.forward(&x, &mut context)?;
                skips.push(x.clone());
            }
            if let Some(conv) = &block.resize {
                x = conv.forward_then(&x, After::as_type_of(&x))?;
                skips.push(x.clone());
            }
        }
        if let Some(middle) = &self.middle {
            x = middle.forward(&x, &mut context)?;
        }
        for block in &self.up {
            for layer in &block.layers {
                let skip = skips.pop().expect("the way up takes as many skips as the way down leaves");
                let skip = feature_map::repeat(&skip, x.dim(0)?)?;
                x = layer.forward(&feature_map::concat_channels(&x, &skip)?, &mut context)?;
            }
            if let (Some(conv), Some(next)) = (&block.resize, skips.last()) {
                // The next skip's size, not twice this one's: sizes that a level did not divide were rounded up.
                x = conv.forward(&x, feature_map::size(next)?)?;
            }
        }
        let x = self.out.forward(&x)?;
        Ok(feature_map::to_planes(&x)?.to_dtype(DType::F32)?)
    }

    /// The embedding of the timestep, with what is added to it: `(b, width)`, or `(1, width)` for all where nothing is.
    fn embed(&self, timestep: f64, latents: &Tensor, prepared: &Prepared) -> Result<Tensor> {
        let mut sinusoids = self.sinusoids.of(&[timestep], latents.device())?.to_dtype(self.edge_dtype)?;
        if let Some(guidance) = &prepared.guidance {
            sinusoids = guidance.broadcast_add(&sinusoids)?;
        }
        let time = self.time.forward(&sinusoids)?;
        Ok(match &prepared.added {
            Some(added) => added.broadcast_add(&time)?,
            None => time,
        })
    }

    /// The embedding of the pooled text and of the picture's sizes, where the network has one: `(b, width)`.
    fn embed_added(&self, conditioning: &Conditioning) -> Result<Option<Tensor>> {
        let (Some((sinusoids, mlp)), Some(added)) = (&self.added, &conditioning.added) else { return Ok(None) };
        let sizes = sinusoids.of(added.sizes.as_flattened(), conditioning.text.device())?;
        let sizes = sizes.reshape((added.sizes.len(), ()))?.to_dtype(self.edge_dtype)?;
        let pooled = added.pooled.to_dtype(self.edge_dtype)?;
        Ok(Some(mlp.forward(&Tensor::cat(&[&pooled, &sizes], 1)?)?))
    }
}

/// What every block is told in one pass.
struct Context<'a> {
    /// The timestep's embedding, activated: `(b, width)`, or `(1, width)` for all.
    time: Tensor,
    /// What the attentions to the text that are still to come look at.
    text: slice::Iter<'a, Seen>,
}

/// Layers at one size, and the convolution that leads to the next.
#[derive(Debug)]
struct Block<R> {
    layers: Vec<BlockLayer>,
    resize: Option<R>,
}

/// A residual block, and a transformer where the block attends to the text.
#[derive(Debug)]
struct BlockLayer {
    resnet: ResnetBlock,
    transformer: Option<Transformer>,
}

impl BlockLayer {
    fn forward(&self, x: &Tensor, context: &mut Context<'_>) -> Result<Tensor> {
        let x = self.resnet.forward(x, Some(&context.time))?;
        match &self.transformer {
            Some(transformer) => transformer.forward(&x, &mut context.text),
            None => Ok(x),
        }
    }
}

fn resnet(config: &UnetConfig, weights: &Weights, inputs: usize, outputs: usize) -> Result<ResnetBlock> {
    ResnetBlock::new(weights, sizes(config, inputs, outputs))
}

fn sizes(config: &UnetConfig, inputs: usize, outputs: usize) -> ResnetSizes {
    ResnetSizes {
        time: Some(config.time_width()),
        modulates: config.resnet_time_scale_shift == TimeIn::ScaleShift,
        ..ResnetSizes::untold(inputs, outputs, config.norm_num_groups, config.norm_eps)
    }
}

/// The blocks on the way down, and the channels of the skips that they leave, in order.
fn down_blocks(config: &UnetConfig, weights: &Weights) -> Result<(Vec<Block<Conv2d>>, Vec<usize>)> {
    let channels = &config.block_out_channels;
    let mut skips = vec![channels[0]];
    let mut inputs = channels[0];
    let mut blocks = Vec::new();
    for (index, &outputs) in channels.iter().enumerate() {
        let weights = weights.entry("down_blocks", index);
        let mut layers = Vec::new();
        for layer in 0..config.layers_per_block.of(index) {
            let attend = || {
                let depth = config.transformer_layers_down(index, layer);
                let place = Place { index, sees_only_text: config.sees_only_text(index) };
                Transformer::new(config, &weights.entry("attentions", layer), place, depth)
            };
            layers.push(BlockLayer {
                resnet: resnet(config, &weights.entry("resnets", layer), inputs, outputs)?,
                transformer: config.attends_down(index).then(attend).transpose()?,
            });
            skips.push(outputs);
            inputs = outputs;
        }
        let halve = || match config.downsample_padding {
            0 => Conv2d::halving_down(&weights.at("downsamplers.0.conv"), outputs),
            _ => Conv2d::halving(&weights.at("downsamplers.0.conv"), outputs),
        };
        let resize = (index + 1 < channels.len()).then(halve).transpose()?;
        if resize.is_some() {
            skips.push(outputs);
        }
        blocks.push(Block { layers, resize });
    }
    Ok((blocks, skips))
}

/// The blocks on the way up, which take the skips in reverse.
fn up_blocks(config: &UnetConfig, weights: &Weights, mut skips: Vec<usize>) -> Result<Vec<Block<Doubling>>> {
    let channels = &config.block_out_channels;
    let last = channels.len() - 1;
    let mut inputs = channels[last];
    let mut blocks = Vec::new();
    for index in 0..channels.len() {
        let mirror = last - index;
        let outputs = channels[mirror];
        let weights = weights.entry("up_blocks", index);
        let mut layers = Vec::new();
        for layer in 0..=config.layers_per_block.of(mirror) {
            let skip = skips.pop().expect("each block leaves one skip more than it has layers");
            let attend = || {
                let depth = config.transformer_layers_up(index, layer);
                let place = Place { index: mirror, sees_only_text: config.sees_only_text(mirror) };
                Transformer::new(config, &weights.entry("attentions", layer), place, depth)
            };
            layers.push(BlockLayer {
                resnet: resnet(config, &weights.entry("resnets", layer), inputs + skip, outputs)?,
                transformer: config.attends_up(index).then(attend).transpose()?,
            });
            inputs = outputs;
        }
        let double = || Doubling::or_one_less(&weights.at("upsamplers.0.conv"), outputs);
        blocks.push(Block { layers, resize: (index < last).then(double).transpose()? });
    }
    Ok(blocks)
}

/// The block in the middle: a residual block, and where it attends to the text a transformer and another one.
#[derive(Debug)]
struct Middle {
    first: ResnetBlock,
    attending: Option<(Transformer, ResnetBlock)>,
}

impl Middle {
    fn new(config: &UnetConfig, weights: &Weights) -> Result<Self> {
        let last = config.block_out_channels.len() - 1;
        let channels = config.block_out_channels[last];
        let resnet = |name| {
            let divisor = config.mid_block_scale_factor;
            ResnetBlock::new(&weights.at(name), ResnetSizes { divisor, ..sizes(config, channels, channels) })
        };
        let attend = || -> Result<_> {
            let depth = config.transformer_layers_in_the_middle();
            // In diffusers, too, the middle of this kind does not look at `only_cross_attention`.
            let place = Place { index: last, sees_only_text: false };
            let transformer = Transformer::new(config, &weights.at("attentions.0"), place, depth)?;
            Ok((transformer, resnet("resnets.1")?))
        };
        Ok(Self { first: resnet("resnets.0")?, attending: config.middle_attends().then(attend).transpose()? })
    }

    fn forward(&self, x: &Tensor, context: &mut Context<'_>) -> Result<Tensor> {
        let x = self.first.forward(x, Some(&context.time))?;
        let Some((transformer, second)) = &self.attending else { return Ok(x) };
        second.forward(&transformer.forward(&x, &mut context.text)?, Some(&context.time))
    }
}

/// The place of a transformer in the network.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The block, counted on the way down.
    index: usize,
    /// Whether pixels do not look at each other.
    sees_only_text: bool,
}

/// A feature map's pixels attending to each other and to the text.
#[derive(Debug)]
struct Transformer {
    norm: GroupNorm,
    project_in: Linear,
    layers: Vec<TransformerLayer>,
    project_out: Linear,
}

impl Transformer {
    /// A transformer of `depth` layers.
    fn new(config: &UnetConfig, weights: &Weights, place: Place, depth: usize) -> Result<Self> {
        let channels = config.block_out_channels[place.index];
        let layer = |number| TransformerLayer::new(config, &weights.entry("transformer_blocks", number), place);
        Ok(Self {
            norm: GroupNorm::new(&weights.at("norm"), channels, config.norm_num_groups, TRANSFORMER_NORM_EPSILON)?,
            // A 1×1 convolution of the map or a product of the tokens, as `use_linear_projection` says: the same.
            project_in: Linear::new(&weights.at("proj_in"), channels, channels)?,
            layers: (0..depth).map(layer).collect::<Result<_>>()?,
            project_out: Linear::new(&weights.at("proj_out"), channels, channels)?,
        })
    }

    fn forward(&self, x: &Tensor, text: &mut slice::Iter<'_, Seen>) -> Result<Tensor> {
        let tokens = feature_map::to_tokens(&self.norm.forward(x)?)?;
        let mut tokens = self.project_in.forward_then(&tokens, After::as_type_of(x))?;
        for layer in &self.layers {
            tokens = layer.forward(&tokens, text)?;
        }
        let residual = feature_map::repeat(&feature_map::to_tokens(x)?, tokens.dim(0)?)?;
        let tokens = self.project_out.forward_then(&tokens, After::added_to(&residual))?;
        feature_map::from_tokens(&tokens, feature_map::size(x)?)
    }
}

/// Attention among the pixels, attention to the text, and a gated perceptron (Shazeer 2020).
#[derive(Debug)]
struct TransformerLayer {
    norm1: LayerNorm,
    own: Attention,
    /// Whether the first attention is to the text, too.
    sees_only_text: bool,
    norm2: LayerNorm,
    cross: Attention,
    norm3: LayerNorm,
    gated: Linear,
    out: Linear,
}

impl TransformerLayer {
    fn new(config: &UnetConfig, weights: &Weights, Place { index, sees_only_text }: Place) -> Result<Self> {
        let (channels, text) = (config.block_out_channels[index], config.cross_attention_dim.of(index));
        let inner = channels * PERCEPTRON_FACTOR;
        let norm = |name| LayerNorm::new(&weights.at(name), channels, LAYER_NORM_EPSILON);
        Ok(Self {
            norm1: norm("norm1")?,
            own: Attention::new(config, &weights.at("attn1"), index, if sees_only_text { text } else { channels })?,
            sees_only_text,
            norm2: norm("norm2")?,
            cross: Attention::new(config, &weights.at("attn2"), index, text)?,
            norm3: norm("norm3")?,
            gated: Linear::new(&weights.at("ff.net.0.proj"), channels, 2 * inner)?,
            out: Linear::new(&weights.at("ff.net.2"), inner, channels)?,
        })
    }

    /// The attentions to the text, in their order.
    fn to_text(&self) -> impl Iterator<Item = &Attention> {
        self.sees_only_text.then_some(&self.own).into_iter().chain([&self.cross])
    }

    fn forward(&self, x: &Tensor, text: &mut slice::Iter<'_, Seen>) -> Result<Tensor> {
        let mut next = || text.next().expect("what was prepared has one for each attention to the text");
        let y = self.norm1.forward(x)?;
        let x = if self.sees_only_text {
            self.own.forward(&y, next(), x)?
        } else {
            self.own.forward(&y, &self.own.see(&y)?, x)?
        };
        let x = self.cross.forward(&self.norm2.forward(&x)?, next(), &x)?;
        let gated = self.gated.forward_gated(&self.norm3.forward(&x)?)?;
        self.out.forward_then(&gated, After::added_to(&x))
    }
}

/// Attention of pixels to pixels or to text.
#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
    upcast: bool,
}

impl Attention {
    /// The attention of block `index`, counted on the way down, to tokens of `inputs` channels.
    fn new(config: &UnetConfig, weights: &Weights, index: usize, inputs: usize) -> Result<Self> {
        let channels = config.block_out_channels[index];
        Ok(Self {
            query: Linear::without_bias(&weights.at("to_q"), channels, channels)?,
            key: Linear::without_bias(&weights.at("to_k"), inputs, channels)?,
            value: Linear::without_bias(&weights.at("to_v"), inputs, channels)?,
            out: Linear::new(&weights.at("to_out.0"), channels, channels)?,
            heads: config.attention_head_dim.of(index),
            upcast: config.upcast_attention,
        })
    }

    /// The keys and values of tokens to look at: `(b, n, inputs)`.
    fn see(&self, tokens: &Tensor) -> Result<Seen> {
        Ok(Seen { keys: self.widen(self.key.forward(tokens)?)?, values: self.widen(self.value.forward(tokens)?)? })
    }

    /// What `x` finds in `seen`, added to `residual`; both are repeated for all that there is to see.
    fn forward(&self, x: &Tensor, seen: &Seen, residual: &Tensor) -> Result<Tensor> {
        let batch = seen.keys.dim(0)?;
        let queries = feature_map::repeat(&self.widen(self.query.forward(x)?)?, batch)?;
        let residual = &feature_map::repeat(residual, batch)?;
        let found = attention(&queries, &seen.keys, &seen.values, self.heads, None)?;
        self.out.forward_then(&found.to_dtype(x.dtype())?, After::added_to(residual))
    }

    /// In f32 where the checkpoint asks for that.
    fn widen(&self, x: Tensor) -> Result<Tensor> {
        Ok(if self.upcast { x.to_dtype(DType::F32)? } else { x })
    }
}

/// What an attention looks at: keys and values `(b, n, c)`.
#[derive(Debug, Clone)]
struct Seen {
    keys: Tensor,
    values: Tensor,
}
