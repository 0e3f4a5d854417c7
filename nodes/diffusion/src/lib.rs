//! The Stable Diffusion 1.5 node library: checkpoints, CLIP text, sampling, ControlNet, the autoencoder.
//!
//! The objects ([`model`], [`clip`], [`vae`], [`control_net`]) put a model of `kosmograph-models` behind the
//! interfaces of node.h; the nodes call interfaces only, so that an object of any other library does as
//! well.

mod clip;
mod control;
mod control_net;
mod embedding;
mod hint;
mod latent;
mod loaders;
mod lora;
mod model;
mod sample;
mod sampling;
mod text;
mod vae;

use control::ControlNet;
use latent::{EmptyLatentImage, VAEDecode, VAEEncode, VaeDecode};
use loaders::{CLIPLoader, CheckpointLoaderSimple, ControlNetLoader, UNETLoader, VAELoader};
use lora::{LoraLoader, LoraLoaderModelOnly};
use sample::{KSampler, UNetSample};
use text::{CLIPSetLastLayer, CLIPTextEncode};

node::library![
    CheckpointLoaderSimple,
    UNETLoader,
    VAELoader,
    CLIPLoader,
    ControlNetLoader,
    LoraLoader,
    LoraLoaderModelOnly,
    CLIPTextEncode,
    CLIPSetLastLayer,
    EmptyLatentImage,
    KSampler,
    UNetSample,
    ControlNet,
    VAEDecode,
    VaeDecode,
    VAEEncode,
];
