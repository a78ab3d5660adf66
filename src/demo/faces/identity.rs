//! What makes a person: everything that stays the same from image to image.
//!
//! Lengths are in head units (1 = from the middle of the face to the chin), x to the right, y down, z to the viewer.

use crate::base::random::{Purpose, Random};

pub(super) type Colour = [f32; 3];

/// The variation number that no image has: its stream describes the identity itself.
const IDENTITY_STREAM: u32 = u32::MAX;

/// The stream of random numbers of one image of an identity (or of the identity itself).
pub(super) fn stream(seed: u64, identity: u32, variation: u32) -> Random {
    Random::new(
        seed,
        Purpose::Faces,
        u64::from(identity) << 32 | u64::from(variation),
    )
}

/// A modest palette of skin tones; an identity's own lies between two neighbours.
const SKINS: [Colour; 6] = [
    [0.95, 0.79, 0.70],
    [0.90, 0.72, 0.58],
    [0.83, 0.63, 0.48],
    [0.73, 0.53, 0.39],
    [0.58, 0.40, 0.29],
    [0.44, 0.30, 0.22],
];

/// Hair colours: black, dark brown, brown, auburn, dark blond, blond, grey.
const HAIRS: [Colour; 7] = [
    [0.09, 0.08, 0.08],
    [0.20, 0.13, 0.09],
    [0.33, 0.21, 0.13],
    [0.42, 0.20, 0.11],
    [0.52, 0.39, 0.24],
    [0.74, 0.60, 0.38],
    [0.58, 0.57, 0.56],
];

/// Eye colours: dark brown, brown, hazel, green, blue, grey.
const IRISES: [Colour; 6] = [
    [0.17, 0.10, 0.07],
    [0.34, 0.20, 0.10],
    [0.46, 0.34, 0.15],
    [0.30, 0.45, 0.26],
    [0.24, 0.42, 0.66],
    [0.45, 0.50, 0.54],
];

const FRAMES: [Colour; 5] = [
    [0.06, 0.06, 0.07],
    [0.30, 0.17, 0.09],
    [0.52, 0.10, 0.12],
    [0.12, 0.20, 0.42],
    [0.72, 0.66, 0.50],
];

/// Head, jaw and chin.
pub(super) struct Head {
    /// Half the width at the cheekbones.
    pub(super) width: f32,
    /// From the middle of the face to the chin.
    pub(super) chin: f32,
    /// From the middle of the face to the top of the skull.
    pub(super) crown: f32,
    /// How much narrower the jaw is than the cheekbones, as a fraction.
    pub(super) taper: f32,
    /// 0 for an oval jaw, towards 1 for a square one.
    pub(super) square: f32,
    /// Half the depth, front to back.
    pub(super) depth: f32,
    /// Strength of the cleft in the chin, 0 for most.
    pub(super) cleft: f32,
    /// Size of the ears.
    pub(super) ear: f32,
    /// How far the ears stand out.
    pub(super) ear_out: f32,
    /// Strength of the shadow below the cheekbones.
    pub(super) cheekbone: f32,
    /// Strength of the folds from nose to mouth.
    pub(super) fold: f32,
}

/// Eyes and brows; x is given for the eye at the right of the image and mirrored.
pub(super) struct Eyes {
    pub(super) x: f32,
    pub(super) y: f32,
    /// Half the width.
    pub(super) width: f32,
    /// Half the opening when wide awake.
    pub(super) height: f32,
    /// Radians; positive when the outer corner is the higher one.
    pub(super) slant: f32,
    /// Radius of the iris.
    pub(super) iris: f32,
    pub(super) iris_colour: Colour,
    /// Distance of the crease above the upper lid; 0 for none.
    pub(super) crease: f32,
    /// Strength of the shadow below the eyes.
    pub(super) bags: f32,
    /// From the eye up to the brow.
    pub(super) brow_gap: f32,
    /// Half the brow's length.
    pub(super) brow_length: f32,
    /// Half the brow's thickness at its inner end.
    pub(super) brow_thickness: f32,
    pub(super) brow_arch: f32,
    /// Positive when the outer end is the higher one.
    pub(super) brow_slant: f32,
    pub(super) brow_colour: Colour,
}

/// Nose and mouth.
pub(super) struct NoseMouth {
    /// Height of the tip in the face (y).
    pub(super) nose_y: f32,
    /// Half the width at the nostrils.
    pub(super) nose_width: f32,
    /// Half the width of the bridge.
    pub(super) bridge: f32,
    /// How far the tip stands out.
    pub(super) nose_height: f32,
    pub(super) mouth_y: f32,
    /// Half the width.
    pub(super) mouth_width: f32,
    pub(super) upper_lip: f32,
    pub(super) lower_lip: f32,
    /// Depth of the dip in the middle of the upper lip.
    pub(super) bow: f32,
    /// The corners at rest: positive when they turn up.
    pub(super) corners: f32,
    pub(super) lip_colour: Colour,
}

/// Hair on the head.
pub(super) struct Hair {
    pub(super) colour: Colour,
    /// 0 for a bald head, else 1.
    pub(super) cover: f32,
    /// The hairline's height (y) at the parting.
    pub(super) line: f32,
    /// Where the parting is (x).
    pub(super) parting: f32,
    /// How fast the hairline falls to the left and to the right of the parting.
    pub(super) fall: [f32; 2],
    /// How high the temples are free of hair.
    pub(super) temple: f32,
    /// Thickness above the skull.
    pub(super) volume: f32,
    /// Thickness beside the head.
    pub(super) side: f32,
    /// How far down (y) hair frames the face.
    pub(super) sideburn: f32,
    /// How far down (y) the hair behind the head reaches.
    pub(super) length: f32,
    /// Waviness of the hairline.
    pub(super) wave: f32,
}

/// Where a beard grows.
pub(super) struct Beard {
    /// Strength of the moustache, of the chin beard and of the beard along the jaw, 0 for none.
    pub(super) moustache: f32,
    pub(super) chin: f32,
    pub(super) jaw: f32,
    pub(super) colour: Colour,
}

/// Glasses.
pub(super) struct Glasses {
    /// Half the width and height of a lens.
    pub(super) size: [f32; 2],
    /// Corner radius as a fraction of the smaller half side.
    pub(super) round: f32,
    /// Half the frame's thickness.
    pub(super) frame: f32,
    pub(super) colour: Colour,
}

/// A mark on the skin.
pub(super) struct Mark {
    pub(super) x: f32,
    pub(super) y: f32,
    pub(super) radius: f32,
    /// How much it darkens the skin.
    pub(super) strength: f32,
}

/// Everything that stays the same from image to image of one person.
pub(super) struct Identity {
    pub(super) skin: Colour,
    pub(super) head: Head,
    pub(super) eyes: Eyes,
    pub(super) nose_mouth: NoseMouth,
    pub(super) hair: Hair,
    pub(super) beard: Option<Beard>,
    pub(super) glasses: Option<Glasses>,
    pub(super) marks: Vec<Mark>,
}

pub(super) fn mix(a: Colour, b: Colour, t: f32) -> Colour {
    std::array::from_fn(|i| a[i] + (b[i] - a[i]) * t)
}

pub(super) fn scaled(a: Colour, s: f32) -> Colour {
    a.map(|v| v * s)
}

/// A normal number cut off at two standard deviations, around `mean`.
fn around(random: &mut Random, mean: f32, deviation: f32) -> f32 {
    mean + deviation * random.normal().clamp(-2.0, 2.0)
}

fn chance(random: &mut Random, probability: f32) -> bool {
    random.uniform() < probability
}

fn pick(random: &mut Random, palette: &[Colour]) -> Colour {
    palette[random.below(palette.len() as u32) as usize]
}

impl Identity {
    /// The person with number `identity` in the world `seed`.
    pub(super) fn new(seed: u64, identity: u32) -> Self {
        let r = &mut stream(seed, identity, IDENTITY_STREAM);

        let tone = r.uniform() * (SKINS.len() - 1) as f32;
        let below = (tone as usize).min(SKINS.len() - 2);
        let skin = mix(SKINS[below], SKINS[below + 1], tone - below as f32);
        let skin = [
            skin[0],
            skin[1] * r.range(0.96, 1.03),
            skin[2] * r.range(0.92, 1.06),
        ];
        let hair_colour = scaled(pick(r, &HAIRS), r.range(0.8, 1.2));

        let head = Head {
            width: around(r, 0.78, 0.055),
            chin: around(r, 1.0, 0.065),
            crown: around(r, 1.04, 0.04),
            taper: r.range(0.10, 0.44),
            square: r.range(0.0, 0.85),
            depth: r.range(0.80, 0.95),
            cleft: if chance(r, 0.2) {
                r.range(0.4, 1.0)
            } else {
                0.0
            },
            ear: r.range(0.13, 0.23),
            ear_out: r.range(0.0, 0.09),
            cheekbone: r.range(0.0, 1.0),
            fold: if chance(r, 0.4) {
                r.range(0.3, 1.0)
            } else {
                0.0
            },
        };

        let eye_y = around(r, -0.13, 0.045);
        let eyes = Eyes {
            x: around(r, 0.335, 0.040),
            y: eye_y,
            width: around(r, 0.165, 0.022),
            height: r.range(0.052, 0.125),
            slant: around(r, 0.04, 0.13),
            iris: r.range(0.065, 0.100),
            iris_colour: scaled(pick(r, &IRISES), r.range(0.85, 1.2)),
            crease: if chance(r, 0.6) {
                r.range(0.02, 0.06)
            } else {
                0.0
            },
            bags: r.range(0.0, 1.0),
            brow_gap: r.range(0.14, 0.30),
            brow_length: r.range(0.13, 0.24),
            brow_thickness: r.range(0.012, 0.080),
            brow_arch: r.range(-0.02, 0.13),
            brow_slant: around(r, 0.05, 0.22),
            brow_colour: scaled(
                mix(hair_colour, [0.16, 0.11, 0.08], 0.45),
                r.range(0.6, 1.1),
            ),
        };

        let nose_y = around(r, 0.29, 0.062);
        let nose_mouth = NoseMouth {
            nose_y,
            nose_width: r.range(0.09, 0.23),
            bridge: r.range(0.035, 0.075),
            nose_height: r.range(0.10, 0.26),
            mouth_y: nose_y + r.range(0.20, 0.34),
            mouth_width: r.range(0.18, 0.39),
            upper_lip: r.range(0.018, 0.10),
            lower_lip: r.range(0.03, 0.13),
            bow: r.range(0.0, 0.035),
            corners: around(r, 0.0, 0.03),
            lip_colour: mix(scaled(skin, 0.8), [0.68, 0.22, 0.24], r.range(0.25, 0.75)),
        };

        let long = chance(r, 0.45);
        let volume = r.range(0.04, 0.24);
        let hair = Hair {
            colour: hair_colour,
            cover: if chance(r, 0.07) { 0.0 } else { 1.0 },
            line: r.range(-0.80, -0.40),
            parting: r.range(-0.50, 0.50),
            fall: [r.range(-0.1, 0.42), r.range(-0.1, 0.42)],
            temple: r.range(0.0, 0.30),
            volume,
            side: if long {
                r.range(0.05, 0.18)
            } else {
                r.range(0.0, 0.06)
            },
            sideburn: if long {
                r.range(0.3, 1.3)
            } else {
                r.range(-0.35, 0.25)
            },
            length: if long {
                r.range(0.7, 1.6)
            } else {
                r.range(-0.2, 0.2)
            },
            wave: if chance(r, 0.4) {
                r.range(0.02, 0.06)
            } else {
                0.0
            },
        };

        let beard = if chance(r, 0.27) {
            let strength = r.range(0.35, 0.95);
            let kind = r.below(4);
            let part = |grows: bool| if grows { strength } else { 0.0 };
            Some(Beard {
                moustache: part(kind != 3),
                chin: part(kind != 0),
                jaw: part(kind >= 2),
                colour: scaled(hair_colour, r.range(0.8, 1.1)),
            })
        } else {
            None
        };

        let glasses = if chance(r, 0.22) {
            Some(Glasses {
                size: [r.range(0.21, 0.28), r.range(0.13, 0.22)],
                round: r.range(0.15, 1.0),
                frame: r.range(0.010, 0.027),
                colour: pick(r, &FRAMES),
            })
        } else {
            None
        };

        let mut marks = Vec::new();
        if chance(r, 0.45) {
            for _ in 0..1 + r.below(3) {
                marks.push(Mark {
                    x: r.range(-0.60, 0.60),
                    y: r.range(-0.45, 0.85),
                    radius: r.range(0.020, 0.042),
                    strength: r.range(0.5, 0.85),
                });
            }
        }
        if chance(r, 0.2) {
            for _ in 0..12 + r.below(14) {
                let side = if chance(r, 0.5) { 1.0 } else { -1.0 };
                marks.push(Mark {
                    x: side * r.range(0.08, 0.52),
                    y: r.range(0.0, 0.38),
                    radius: r.range(0.010, 0.018),
                    strength: r.range(0.25, 0.45),
                });
            }
        }

        Identity {
            skin,
            head,
            eyes,
            nose_mouth,
            hair,
            beard,
            glasses,
            marks,
        }
    }
}
