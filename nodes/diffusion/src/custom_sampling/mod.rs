//! A sampling in parts: the way (SAMPLER), what says x₀ (GUIDER), the noise (NOISE) and the levels (SIGMAS) are values,
//! and each may be another library's.

mod guiders;
mod lcm_upscale;
mod noises;
mod run;
mod samplers;

pub use guiders::{BasicGuider, CFGGuider, DualCFGGuider, PerpNegGuider};
pub use lcm_upscale::SamplerLCMUpscale;
pub use noises::{AddNoise, DisableNoise, RandomNoise};
pub use run::{SamplerCustom, SamplerCustomAdvanced};
pub use samplers::{
    KSamplerSelect, SamplerDPMAdaptative, SamplerDPMPP_2M_SDE, SamplerDPMPP_2S_Ancestral,
    SamplerDPMPP_3M_SDE, SamplerDPMPP_SDE, SamplerER_SDE, SamplerEulerAncestral,
    SamplerEulerAncestralCFGPP, SamplerEulerCFGpp, SamplerLMS, SamplerSASolver,
};
