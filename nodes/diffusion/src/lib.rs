//! The Stable Diffusion node library, of 1.5 and SDXL: checkpoints, CLIP text, sampling, ControlNet, the autoencoder.
//!
//! The objects ([`model`], [`clip`], [`vae`], [`control_net`]) put a model of `kosmograph-models` behind the
//! interfaces of node.h; the nodes call interfaces only, so that an object of any other library does as
//! well.

mod basic_pipe;
mod check;
mod check_families;
mod checkpoint_config;
mod clip;
mod clip_vision;
mod conditioning;
mod conditioning_area;
mod control;
mod control_net;
mod control_of_unet;
mod custom_sampling;
mod efficient;
mod embedding;
mod gguf;
mod gligen;
mod hint;
mod image_noise;
mod inpaint;
mod ip_adapter;
mod latent;
mod latent_batch;
mod latent_compose;
mod latent_file;
mod latent_join;
mod latent_math;
mod latent_operation;
mod latent_resize;
mod latent_size;
mod latent_tiled;
mod loaders;
mod lora;
mod lora_save;
mod lora_stack;
mod lora_training;
mod measure;
mod merge;
mod missing_part;
mod model;
mod model_sampling;
mod observe;
mod output;
mod packs;
mod patches;
mod photo_maker;
mod picture_sets;
mod rebatch;
mod sample;
mod sampling;
mod save_lora;
mod save_models;
mod sigmas;
mod style_model;
mod t2i_adapter;
mod text;
mod text_sdxl;
mod tiled_redraw;
mod tiny_vae;
mod unclip;
mod upscale;
mod upscale_model;
mod vae;
mod weights;

use basic_pipe::{EditBasicPipe, FromBasicPipe, FromBasicPipeV2, ToBasicPipe};
use checkpoint_config::CheckpointLoader;
use clip_vision::{CLIPVisionEncode, CLIPVisionLoader};
use conditioning::{
    ConditioningAverage, ConditioningCombine, ConditioningConcat, ConditioningZeroOut,
};
use conditioning_area::{
    ConditioningSetArea, ConditioningSetAreaPercentage, ConditioningSetAreaStrength,
    ConditioningSetMask, ConditioningSetTimestepRange,
};
use control::{
    ACN_AdvancedControlNetApply, ControlNet, ControlNetApply, ControlNetApplyAdvanced,
    SetUnionControlNetType,
};
use control_of_unet::DiffControlNetLoader;
use custom_sampling::{
    AddNoise, BasicGuider, CFGGuider, DisableNoise, DualCFGGuider, KSamplerSelect, PerpNegGuider,
    RandomNoise, SamplerCustom, SamplerCustomAdvanced, SamplerDPMAdaptative, SamplerDPMPP_2M_SDE,
    SamplerDPMPP_2S_Ancestral, SamplerDPMPP_3M_SDE, SamplerDPMPP_SDE, SamplerER_SDE,
    SamplerEulerAncestral, SamplerEulerAncestralCFGPP, SamplerEulerCFGpp, SamplerLCMUpscale,
    SamplerLMS, SamplerSASolver,
};
use efficient::{EfficientLoader, KSamplerEfficient};
use gguf::{CLIPLoaderGGUF, DualCLIPLoaderGGUF, UnetLoaderGGUF};
use gligen::{GLIGENLoader, GLIGENTextBoxApply};
use image_noise::ImageAddNoise;
use inpaint::{
    InpaintModelConditioning, InstructPixToPixConditioning, SetLatentNoiseMask, VAEEncodeForInpaint,
};
use ip_adapter::nodes::{
    IPAdapter, IPAdapterAdvanced, IPAdapterCombineEmbeds, IPAdapterEmbeds, IPAdapterEncoder,
    IPAdapterModelLoader, IPAdapterUnifiedLoader,
};
use ip_adapter::prepare::PrepImageForClipVision;
use latent::{EmptyLatentImage, VAEDecode, VAEEncode, VaeDecode};
use latent_batch::{LatentFromBatch, RepeatLatentBatch};
use latent_compose::{LatentComposite, LatentCrop, LatentFlip, LatentRotate};
use latent_file::{LoadLatent, SaveLatent};
use latent_join::{LatentBatch, LatentBatchSeedBehavior, LatentConcat, LatentCut};
use latent_math::{LatentAdd, LatentBlend, LatentInterpolate, LatentMultiply, LatentSubtract};
use latent_operation::{
    LatentApplyOperation, LatentOperationSharpen, LatentOperationTonemapReinhard,
};
use latent_size::{LatentUpscale, LatentUpscaleBy};
use latent_tiled::{VAEDecodeTiled, VAEEncodeTiled};
use loaders::{
    CLIPLoader, CheckpointLoaderSimple, ControlNetLoader, ControlNetLoaderAdvanced,
    DiffusersLoader, DualCLIPLoader, UNETLoader, VAELoader,
};
use lora::{LoraLoader, LoraLoaderModelOnly};
use lora_save::LoraSave;
use lora_stack::{CrApplyLoraStack, CrLoraStack};
use lora_training::{LoraModelLoader, TrainLoraNode};
use measure::{FeaturesLoader, FrechetDistance, ImageSimilarity, TextSimilarity};
use merge::{
    CLIPAttentionMultiply, CLIPMergeAdd, CLIPMergeSimple, CLIPMergeSubtract, ModelMergeAdd,
    ModelMergeBlocks, ModelMergeSD1, ModelMergeSDXL, ModelMergeSimple, ModelMergeSubtract,
    UNetCrossAttentionMultiply, UNetSelfAttentionMultiply,
};
use model_sampling::{
    DifferentialDiffusion, EasyCache, LazyCache, ModelSamplingContinuousEDM, ModelSamplingDiscrete,
};
use packs::{
    CrApplyControlNet, CrSd15AspectRatio, CrSdxlAspectRatio, VAEEncodeArgMax,
    VaeEncodeInpaintConditioning, WasUpscaleModelLoader,
};
use patches::{
    APG, EpsilonScaling, FreSca, FreeU, FreeU_V2, HyperTile, HypernetworkLoader,
    LatentApplyOperationCFG, Mahiro, PatchModelAddDownscale, PerpNeg, PerturbedAttentionGuidance,
    RescaleCFG, SelfAttentionGuidance, TCFG, TomePatchModel,
};
use photo_maker::{PhotoMakerEncode, PhotoMakerLoader};
use picture_sets::{LoadImageSetFromFolderNode, LoadImageTextSetFromFolderNode};
use rebatch::RebatchLatents;
use sample::{KSampler, KSamplerAdvanced, UNetSample};
use save_lora::SaveLoRANode;
use save_models::{CLIPSave, CheckpointSave, ModelSave, VAESave};
use sigmas::{
    AlignYourStepsScheduler, BasicScheduler, BetaSamplingScheduler, ExponentialScheduler,
    ExtendIntermediateSigmas, FlipSigmas, KarrasScheduler, LaplaceScheduler,
    PolyexponentialScheduler, SDTurboScheduler, SamplingPercentToSigma, SetFirstSigma, SplitSigmas,
    SplitSigmasDenoise, VPScheduler,
};
use style_model::{StyleModelApply, StyleModelLoader};
use text::{CLIPSetLastLayer, CLIPTextEncode, CLIPTextEncodeControlnet};
use text_sdxl::{CLIPTextEncodeSDXL, CLIPTextEncodeSDXLRefiner};
use tiled_redraw::{UltimateSDUpscale, UltimateSDUpscaleNoUpscale};
use unclip::UnclipConditioning;
use upscale::{ImageUpscaleWithModel, UpscaleModelLoader};

node::library![
    EfficientLoader,
    CrLoraStack,
    CrApplyLoraStack,
    KSamplerEfficient,
    ToBasicPipe,
    FromBasicPipe,
    FromBasicPipeV2,
    EditBasicPipe,
    UltimateSDUpscale,
    UltimateSDUpscaleNoUpscale,
    CheckpointLoaderSimple,
    CheckpointLoader,
    DiffusersLoader,
    UNETLoader,
    UnetLoaderGGUF,
    VAELoader,
    CLIPLoader,
    DualCLIPLoader,
    CLIPLoaderGGUF,
    DualCLIPLoaderGGUF,
    ControlNetLoader,
    DiffControlNetLoader,
    UnclipConditioning,
    LoraLoader,
    LoraLoaderModelOnly,
    ModelSamplingDiscrete,
    ModelSamplingContinuousEDM,
    RescaleCFG,
    CLIPVisionLoader,
    CLIPVisionEncode,
    CLIPTextEncode,
    CLIPTextEncodeControlnet,
    CLIPTextEncodeSDXL,
    CLIPTextEncodeSDXLRefiner,
    CLIPSetLastLayer,
    EmptyLatentImage,
    ConditioningCombine,
    ConditioningAverage,
    ConditioningConcat,
    ConditioningSetArea,
    ConditioningSetAreaPercentage,
    ConditioningSetAreaStrength,
    ConditioningSetMask,
    ConditioningSetTimestepRange,
    ConditioningZeroOut,
    KSampler,
    KSamplerAdvanced,
    UNetSample,
    ControlNet,
    ControlNetApply,
    ControlNetApplyAdvanced,
    SetUnionControlNetType,
    ControlNetLoaderAdvanced,
    ACN_AdvancedControlNetApply,
    SetLatentNoiseMask,
    VAEEncodeForInpaint,
    InpaintModelConditioning,
    InstructPixToPixConditioning,
    VAEDecode,
    VaeDecode,
    VAEEncode,
    VAEDecodeTiled,
    VAEEncodeTiled,
    LatentUpscale,
    LatentUpscaleBy,
    LatentFromBatch,
    RebatchLatents,
    RepeatLatentBatch,
    LatentComposite,
    LatentCrop,
    LatentFlip,
    LatentRotate,
    LatentAdd,
    LatentSubtract,
    LatentMultiply,
    LatentInterpolate,
    LatentBlend,
    LatentBatch,
    LatentBatchSeedBehavior,
    LatentConcat,
    LatentCut,
    BasicScheduler,
    KarrasScheduler,
    ExponentialScheduler,
    PolyexponentialScheduler,
    LaplaceScheduler,
    VPScheduler,
    SDTurboScheduler,
    AlignYourStepsScheduler,
    SplitSigmas,
    SplitSigmasDenoise,
    FlipSigmas,
    SetFirstSigma,
    ExtendIntermediateSigmas,
    SamplingPercentToSigma,
    BetaSamplingScheduler,
    KSamplerSelect,
    SamplerEulerAncestral,
    SamplerEulerAncestralCFGPP,
    SamplerEulerCFGpp,
    SamplerLMS,
    SamplerDPMPP_2S_Ancestral,
    SamplerDPMPP_SDE,
    SamplerDPMPP_2M_SDE,
    SamplerDPMPP_3M_SDE,
    SamplerDPMAdaptative,
    SamplerER_SDE,
    SamplerSASolver,
    SamplerLCMUpscale,
    RandomNoise,
    DisableNoise,
    AddNoise,
    BasicGuider,
    CFGGuider,
    DualCFGGuider,
    PerpNegGuider,
    PerpNeg,
    SamplerCustom,
    SamplerCustomAdvanced,
    FreeU,
    FreeU_V2,
    HyperTile,
    TomePatchModel,
    PerturbedAttentionGuidance,
    SelfAttentionGuidance,
    Mahiro,
    APG,
    GLIGENLoader,
    GLIGENTextBoxApply,
    HypernetworkLoader,
    StyleModelLoader,
    StyleModelApply,
    PhotoMakerLoader,
    PhotoMakerEncode,
    TCFG,
    FreSca,
    EpsilonScaling,
    PatchModelAddDownscale,
    DifferentialDiffusion,
    EasyCache,
    LazyCache,
    SaveLatent,
    LoadLatent,
    ImageAddNoise,
    LatentApplyOperation,
    LatentApplyOperationCFG,
    LatentOperationSharpen,
    LatentOperationTonemapReinhard,
    ModelMergeSimple,
    ModelMergeBlocks,
    ModelMergeSD1,
    ModelMergeSDXL,
    ModelMergeAdd,
    ModelMergeSubtract,
    CLIPMergeSimple,
    CLIPMergeAdd,
    CLIPMergeSubtract,
    CLIPAttentionMultiply,
    UNetSelfAttentionMultiply,
    UNetCrossAttentionMultiply,
    ModelSave,
    CLIPSave,
    VAESave,
    CheckpointSave,
    UpscaleModelLoader,
    ImageUpscaleWithModel,
    IPAdapterModelLoader,
    IPAdapterUnifiedLoader,
    IPAdapter,
    IPAdapterAdvanced,
    IPAdapterEncoder,
    IPAdapterCombineEmbeds,
    IPAdapterEmbeds,
    PrepImageForClipVision,
    FeaturesLoader,
    ImageSimilarity,
    TextSimilarity,
    FrechetDistance,
    LoadImageSetFromFolderNode,
    LoadImageTextSetFromFolderNode,
    TrainLoraNode,
    LoraModelLoader,
    SaveLoRANode,
    LoraSave,
    CrSd15AspectRatio,
    CrSdxlAspectRatio,
    CrApplyControlNet,
    WasUpscaleModelLoader,
    VAEEncodeArgMax,
    VaeEncodeInpaintConditioning;
    prepare: kosmograph_threads::start;
    finish: kosmograph_caching_allocator::release;
    check: check::Fits;
    train: kosmograph_tasks::Trainings;
    evaluate: kosmograph_tasks::Evaluations
];
