//! The way of accelerators: networks and pictures through the tensor library, with the CPU kernels left out.
//!
//! On CUDA and Metal the same operations run on the device. What they compute is held here to the references of the other
//! files, in the same tolerances: a wrong layout, type or formula on that way is found on a machine without a device.

use darkroom::{
    models::{DtypeChoice, ModelSource},
    nn::without_kernels,
    pipeline::Generate,
};

use crate::{
    changes, networks, pictures,
    support::{CHECKPOINTS, data, load_as, pipeline, psnr},
};

/// The least likeness of pictures drawn in f16 to the same in f32, in dB, on the mean over all cases.
const LEAST_MEAN_PSNR_OF_F16: f64 = 45.0;

#[test]
fn text_is_encoded_as_diffusers_does() {
    without_kernels(networks::text_is_encoded_as_diffusers_does);
}

#[test]
fn unets_give_what_diffusers_gives() {
    without_kernels(networks::unets_give_what_diffusers_gives_at_whole_and_fractional_timesteps_and_odd_sizes);
    without_kernels(networks::unets_in_the_layouts_of_distilled_models_give_what_diffusers_gives);
}

#[test]
fn a_unet_draws_latents_once_for_several_texts() {
    without_kernels(networks::a_unet_draws_latents_once_for_several_texts_as_it_draws_them_repeated);
}

#[test]
fn vaes_decode_and_encode_as_diffusers_does() {
    without_kernels(networks::vaes_decode_as_diffusers_does);
    without_kernels(networks::vaes_encode_as_diffusers_does_at_odd_sizes_too);
}

#[test]
fn every_sampler_and_option_draws_diffusers_picture() {
    without_kernels(pictures::every_sampler_and_option_draws_diffusers_picture);
}

#[test]
fn the_bundled_model_draws_what_diffusers_draws_with_it() {
    without_kernels(pictures::the_bundled_model_draws_what_diffusers_draws_with_it);
}

#[test]
fn pictures_are_changed_as_diffusers_changes_them() {
    without_kernels(changes::every_change_is_diffusers_own);
    without_kernels(changes::a_checkpoint_made_for_inpainting_draws_what_diffusers_draws_with_it);
}

#[test]
fn f16_draws_the_picture_of_f32() {
    let mut found = Vec::new();
    for name in CHECKPOINTS {
        let narrow = load_as(ModelSource::Directory(data(&format!("{name}/model"))), DtypeChoice::F16);
        assert_eq!(narrow.model().dtype, "f16");
        let wide = pipeline(name);
        for (case, config) in pictures::cases(name).into_iter().filter(|(case, _)| !case.ends_with(".karras")) {
            let likeness = psnr(&pictures::draw(&narrow, &config), &pictures::draw(&wide, &config));
            println!("{name}, {case}: {likeness:.1} dB");
            found.push(likeness);
        }
    }
    let mean = found.iter().sum::<f64>() / found.len() as f64;
    assert!(mean >= LEAST_MEAN_PSNR_OF_F16, "{mean:.2} dB of {found:.1?}");
}
