//! Files of upscalers as people have them, and as nobody should.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::swinir::{Enlarging, SwinIrConfig};
use super::*;

/// A network of small sizes in Real-ESRGAN's names, of random numbers.
fn network(config: &UpscalerConfig) -> BTreeMap<String, Tensor> {
    let weights = Weights::recording();
    Upscaler::load(&weights, config).unwrap();
    let random = |(name, shape): (String, Vec<usize>)| {
        (name, Tensor::randn(0f32, 0.1, shape, &Device::Cpu).unwrap())
    };
    weights.recorded().into_iter().map(random).collect()
}

fn rrdb(doublings: usize, unshuffle: usize) -> UpscalerConfig {
    UpscalerConfig::Rrdb(RrdbConfig { filters: 4, growth: 2, blocks: 2, doublings, unshuffle })
}

fn compact() -> UpscalerConfig {
    UpscalerConfig::Compact(CompactConfig { features: 4, convolutions: 2, scale: 3 })
}

struct Saved {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn save(tensors: &BTreeMap<String, Tensor>) -> Saved {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.safetensors");
    let tensors: Vec<(&String, &Tensor)> = tensors.iter().collect();
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    Saved { _folder: folder, path }
}

fn opened(path: &Path) -> Result<Upscaler> {
    let (config, weights) = open(path, &Device::Cpu)?;
    weights.check(|weights| Upscaler::load(weights, &config), &[])?;
    Upscaler::load(&weights, &config)
}

fn refusal(path: &Path) -> String {
    let error = opened(path).err().expect("a refusal").to_string();
    assert!(error.contains("network.safetensors"), "{error}");
    error
}

fn picture(height: usize, width: usize) -> Tensor {
    Tensor::rand(0f32, 1., (1, 3, height, width), &Device::Cpu).unwrap()
}

#[test]
fn sizes_are_read_off_the_shapes() -> Result<()> {
    let all = [rrdb(0, 1), rrdb(1, 1), rrdb(2, 2), rrdb(2, 4), rrdb(3, 1), compact()];
    for (config, scale) in all.into_iter().zip([1, 2, 2, 1, 8, 3]) {
        let saved = save(&network(&config));
        let upscaler = opened(&saved.path)?;
        assert_eq!((upscaler.config(), config.scale()), (&config, scale));
        let larger = upscaler.upscale(&picture(5, 7))?;
        assert_eq!(larger.dims(), [1, 3, 5 * scale, 7 * scale]);
    }
    Ok(())
}

#[test]
fn what_training_wraps_a_network_in_is_seen_through() -> Result<()> {
    for config in [rrdb(2, 1), compact()] {
        let bare = network(&config);
        let wanted = opened(&save(&bare).path)?.upscale(&picture(1, 1))?.dims().to_vec();
        for wrapping in ["params_ema.", "params.", "state_dict.", "module.", "params.module."] {
            let name = |name: &String| format!("{wrapping}{name}");
            let mut wrapped: BTreeMap<_, _> =
                bare.iter().map(|(key, tensor)| (name(key), tensor.clone())).collect();
            // What the averaged weights stand beside is left alone.
            if wrapping == "params_ema." {
                wrapped.extend(
                    bare.iter().map(|(key, tensor)| (format!("params.{key}"), tensor.clone())),
                );
            }
            let upscaler = opened(&save(&wrapped).path)?;
            assert_eq!(upscaler.upscale(&picture(1, 1))?.dims(), wanted, "{wrapping}");
        }
    }
    Ok(())
}

#[test]
fn tiles_make_about_the_whole_and_are_observed() -> Result<()> {
    let upscaler = opened(&save(&network(&rrdb(1, 1))).path)?;
    let image = Tensor::cat(&[picture(40, 30), picture(40, 30)], 0)?;
    let mut told = Vec::new();
    let observe: Observe<'_> = &mut |done, count| {
        told.push((done, count));
        Ok(())
    };
    let tiled = upscaler.upscale_tiled(&image, Tiling { tile: 24, overlap: 8 }, observe)?;
    // Two rows of two, twice: each picture tells of its beginning and its end.
    assert_eq!(
        (tiled.dims(), told.first(), told.last()),
        (&[2, 3, 80, 60][..], Some(&(0, 8)), Some(&(8, 8)))
    );
    let whole = upscaler.upscale(&image)?;
    let error = (tiled - &whole)?.abs()?.max_all()?.to_scalar::<f32>()?;
    let size = whole.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(error < 0.2 * size, "{error} of {size}");
    let stop: Observe<'_> = &mut |_, _| Err(Error::Cancelled);
    let stopped = upscaler.upscale_tiled(&image, Tiling { tile: 24, overlap: 8 }, stop);
    assert!(matches!(stopped, Err(Error::Cancelled)));
    Ok(())
}

#[test]
fn what_does_not_fit_into_memory_is_refused() {
    let upscaler = opened(&save(&network(&rrdb(2, 1))).path).unwrap();
    let huge = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
    let huge = huge.broadcast_as((1, 3, 1 << 20, 1 << 20)).unwrap();
    let error = upscaler.upscale(&huge).unwrap_err().to_string();
    assert!(error.contains("1048576 x 1048576 pixels at once"), "{error}");
    // The tile is the smallest that is tried, and no smaller.
    let tiling = Tiling { tile: 1 << 22, overlap: 32 };
    let tile = upscaler.tile_that_fits(&huge, tiling);
    assert!((SMALLEST_TILE..1 << 20).contains(&tile), "{tile}");
    assert_eq!(upscaler.tile_that_fits(&picture(8, 8), Tiling { tile: 512, overlap: 32 }), 512);
}

#[test]
fn strangers_files_are_refused_in_a_sentence() {
    let whole = network(&rrdb(2, 1));
    let change = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        refusal(&save(&tensors).path)
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let lacks = change(&|tensors| drop(tensors.remove("conv_hr.bias")));
    assert!(lacks.contains("no tensor `conv_hr.bias`"), "{lacks}");
    let more = change(&|tensors| drop(tensors.insert("surprise".into(), zeros(&[1]))));
    assert!(more.contains("surprise"), "{more}");
    let flat = change(&|tensors| drop(tensors.insert("conv_first.weight".into(), zeros(&[108]))));
    assert!(flat.contains("one of 4 axes"), "{flat}");
    let grey =
        change(&|tensors| drop(tensors.insert("conv_first.weight".into(), zeros(&[4, 1, 3, 3]))));
    assert!(grey.contains("1 channels to 3"), "{grey}");
    let odd = change(&|tensors| {
        drop(tensors.insert("body.1.rdb2.conv5.weight".into(), zeros(&[4, 4, 3, 3])))
    });
    assert!(odd.contains("body.1.rdb2.conv5.weight"), "{odd}");
    // Many enlargements in few bytes.
    let deep = change(&|tensors| {
        for i in 3..60 {
            tensors.insert(format!("conv_up{i}.weight"), zeros(&[4, 4, 3, 3]));
        }
    });
    assert!(deep.contains("doubles 59 times"), "{deep}");
    let nan = change(&|tensors| {
        let nan = Tensor::new(&[f32::NAN; 3], &Device::Cpu).unwrap();
        tensors.insert("conv_last.bias".into(), nan);
    });
    assert!(nan.contains("conv_last.bias") && nan.contains("NaN"), "{nan}");
    let hat =
        BTreeMap::from([("layers.0.residual_group.blocks.0.conv_block.x".to_owned(), zeros(&[1]))]);
    let hat = refusal(&save(&hat).path);
    assert!(hat.contains("a HAT upscaler"), "{hat}");
    let vae = BTreeMap::from([("encoder.down.0.x".to_owned(), zeros(&[1]))]);
    let vae = refusal(&save(&vae).path);
    assert!(vae.contains("it is an autoencoder (VAE), no upscaler"), "{vae}");
    let unknown = refusal(&save(&BTreeMap::from([("x".to_owned(), zeros(&[1]))])).path);
    assert!(unknown.contains("of no upscaler that is read"), "{unknown}");
    let none = refusal(&save(&BTreeMap::new()).path);
    assert!(none.contains("no tensors"), "{none}");
    let mut tensors = network(&compact());
    tensors.insert("body.6.weight".into(), zeros(&[28, 4, 3, 3]));
    let square = refusal(&save(&tensors).path);
    assert!(square.contains("3 channels to 28"), "{square}");
    // Cut off anywhere.
    let saved = save(&whole);
    let bytes = fs::read(&saved.path).unwrap();
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&saved.path, &bytes[..length]).unwrap();
        refusal(&saved.path);
    }
}

fn swinir(enlarging: Enlarging, three_convolutions: bool) -> UpscalerConfig {
    UpscalerConfig::SwinIr(SwinIrConfig {
        channels: 12,
        window: 4,
        heads: 2,
        hidden: 24,
        depths: vec![2, 2],
        three_convolutions,
        enlarging,
    })
}

/// Against the paper's formulas in torch: tests/data/swinir/make.py.
#[test]
fn swinir_is_what_torch_computes() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/swinir");
    for (name, enlarging, three) in [
        ("shuffle_x4", Enlarging::Shuffle { features: 8, scale: 4 }, false),
        ("shuffle_x3", Enlarging::Shuffle { features: 8, scale: 3 }, true),
        ("direct_x2", Enlarging::Direct { scale: 2 }, false),
        ("nearest_x4", Enlarging::Nearest { features: 8, doublings: 2 }, true),
        ("nothing", Enlarging::Nothing, false),
    ] {
        let path = folder.join(format!("{name}.safetensors"));
        let upscaler = opened(&path)?;
        assert_eq!(upscaler.config(), &swinir(enlarging, three), "{name}");
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
        let (input, wanted) = (&tensors["input"], &tensors["output"]);
        let found = upscaler.upscale(input)?;
        assert_eq!(found.dims(), wanted.dims(), "{name}");
        let error = (&found - wanted)?.abs()?.max_all()?.to_scalar::<f32>()?;
        let size = wanted.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(error <= 2e-5 * size, "{name}: {error} of {size}");
    }
    Ok(())
}

#[test]
fn a_strangers_swinir_is_refused_in_a_sentence() {
    let whole = network(&swinir(Enlarging::Direct { scale: 2 }, false));
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let table = "layers.0.residual_group.blocks.0.attn.relative_position_bias_table";
    let change = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        refusal(&save(&tensors).path)
    };
    let put = |name: &'static str, shape: &'static [usize]| {
        move |tensors: &mut BTreeMap<String, Tensor>| {
            tensors
                .insert(name.to_owned(), Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
        }
    };
    for (name, shape, word) in [
        (table, &[48usize, 2][..], "48 rows"),
        (table, &[1, 2], "1 rows"),
        (table, &[49, 5], "5 heads"),
        (table, &[49, 0], "0 heads"),
        (table, &[98], "no two axes"),
        ("conv_first.weight", &[12, 1, 3, 3], "1 channels"),
        ("upsample.0.weight", &[13, 12, 3, 3], "13 channels"),
        ("absolute_pos_embed", &[1, 4, 12], "places of its own"),
        ("layers.1.residual_group.blocks.1.attn.qkv.weight", &[12, 12], "attn.qkv.weight"),
        ("surprise", &[1], "surprise"),
    ] {
        let told = change(&put(name, shape));
        assert!(told.contains(word), "{word}: {told}");
    }
    let lacks = change(&|tensors| drop(tensors.remove("norm.bias")));
    assert!(lacks.contains("no tensor `norm.bias`"), "{lacks}");
    // What can be computed is passed over, whatever it is.
    let mut tensors = whole.clone();
    tensors.insert("layers.0.residual_group.blocks.1.attn_mask".to_owned(), zeros(&[7]));
    assert!(opened(&save(&tensors).path).is_ok());
    let saved = save(&whole);
    let bytes = fs::read(&saved.path).unwrap();
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&saved.path, &bytes[..length]).unwrap();
        refusal(&saved.path);
    }
}
