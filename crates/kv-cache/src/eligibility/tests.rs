//! Rules by table: a model, a wish, and what each layer gets.

use super::*;

fn traits(dim: usize) -> LayerTraits {
    LayerTraits {
        shape: LayerShape { kv_heads: 2, dim },
        queries_per_key: 3,
        key_bias: false,
        window: None,
    }
}

fn wish(preset: &str) -> Wish {
    Wish { preset: preset.parse().unwrap(), ..Wish::default() }
}

/// Formats as `K/V` bits, 16 for dense ones.
fn bits_of(layers: &[LayerTraits], wish: &Wish) -> Vec<(usize, usize)> {
    let shape = decide(layers, wish).unwrap();
    let bits = |layer: &CacheLayer| match layer.format {
        Format::Dense => (16, 16),
        Format::TurboQuant(Widths { keys, values }) => (keys.bits(), values.bits()),
    };
    shape.layers.iter().map(bits).collect()
}

#[test]
fn presets_are_what_their_names_say() {
    let layers = [traits(128); 4];
    for (name, middle, edge) in [
        ("auto", (8, 4), (8, 4)),
        ("f16", (16, 16), (16, 16)),
        ("tq8", (8, 8), (8, 8)),
        ("k8v4", (8, 4), (8, 4)),
        ("tq4", (4, 4), (8, 8)),
        ("k4v3", (4, 3), (8, 8)),
        ("tq3", (3, 3), (8, 8)),
        ("tq2", (2, 2), (8, 8)),
    ] {
        assert_eq!(bits_of(&layers, &wish(name)), [edge, middle, middle, edge], "{name}");
        let bare = Wish { protect: false, ..wish(name) };
        assert_eq!(bits_of(&layers, &bare), [middle; 4], "{name} without protection");
    }
    assert_eq!("tq5".parse::<Preset>().unwrap_err().to_string().lines().count(), 1);
}

#[test]
fn sensitive_keys_get_eight_bits_unless_they_were_asked_for() {
    let biased = LayerTraits { key_bias: true, ..traits(128) };
    let many = LayerTraits { queries_per_key: 6, ..traits(128) };
    let five = LayerTraits { queries_per_key: 5, ..traits(128) };
    let layers = [traits(128), biased, many, five, traits(128)];
    let expected = [(8, 8), (8, 4), (8, 4), (4, 4), (8, 8)];
    assert_eq!(bits_of(&layers, &wish("tq4")), expected);
    let decided = decide(&layers, &wish("tq4")).unwrap();
    let why: Vec<String> = decided.layers.iter().map(CacheLayer::why).collect();
    assert!(why[1].contains("bias") && why[2].contains("6 or more"), "{why:?}");
    assert!(why[0].contains("first or last") && why[3] == "as asked for", "{why:?}");
    let asked = Wish { key_bits: bits(4).unwrap(), value_bits: bits(3).unwrap(), ..wish("auto") };
    assert_eq!(bits_of(&layers, &asked), [(4, 3); 5]);
}

#[test]
fn layers_that_cannot_be_packed_stay_dense_and_say_why() {
    let window = LayerTraits { window: Some(512), ..traits(256) };
    let odd = traits(72);
    let layers = [traits(256), window, odd, traits(256)];
    for name in ["auto", "tq8", "tq2"] {
        let got = bits_of(&layers, &wish(name));
        assert_eq!(got[1..3], [(16, 16); 2], "{name}");
        assert_ne!(got[0], (16, 16), "{name}");
    }
    let shape = decide(&layers, &wish("tq4")).unwrap();
    assert_eq!(
        (shape.layers[1].why(), shape.layers[2].reasons[0]),
        ("sliding window: dense".into(), Reason::HeadDim)
    );
    let none = decide(&[window, odd], &wish("tq4")).unwrap_err().to_string();
    assert!(none.contains("no layer can take it (sliding window: dense)"), "{none}");
    assert!(!decide(&[window, odd], &wish("auto")).unwrap().is_packed());
}

#[test]
fn single_layers_are_as_they_are_asked_for() {
    let layers = [LayerTraits { key_bias: true, ..traits(64) }; 6];
    let own = layer_presets("0=tq4, 2-3=f16,3=tq2").unwrap();
    let wish = Wish { layers: own, ..wish("tq4") };
    let expected = [(4, 4), (8, 4), (16, 16), (2, 2), (8, 4), (8, 8)];
    // The last layer: the bias has widened its keys, the edge its values.
    assert_eq!(bits_of(&layers, &wish), expected);
    let far = Wish { layers: layer_presets("6=f16").unwrap(), ..wish };
    let far = decide(&layers, &far).unwrap_err();
    assert_eq!(far, WishError::NoLayer { layer: 6, layers: 6 });
    for wrong in ["x=f16", "1", "3-2=f16", "1=tq5", "-1=f16"] {
        assert!(layer_presets(wrong).is_err(), "{wrong}");
    }
    assert_eq!(layer_presets(" ").unwrap(), []);
}

#[test]
fn scale_rules_have_names() {
    assert_eq!(scale_rule("default"), Ok(None));
    for rule in ScaleRule::ALL {
        let asked = scale_rule(&rule.to_string()).unwrap();
        assert_eq!(asked, Some(rule));
        let wish = Wish { scale_rule: asked, ..wish("tq4") };
        assert_eq!(decide(&[traits(64)], &wish).unwrap().scale_rule, asked);
    }
    let refused = scale_rule("eden").unwrap_err().to_string();
    assert!(refused.contains("\"eden\"; there are: default, plain, "), "{refused}");
}

#[test]
fn widths_can_be_spelled_out() {
    for keys in Width::CACHE {
        for values in Width::CACHE {
            let name = format!("k{}v{}", keys.bits(), values.bits());
            assert_eq!(name.parse(), Ok(Preset::Packed(Widths { keys, values })), "{name}");
        }
    }
    for wrong in ["k8", "v4", "k8v", "kv", "k5v4", "k4v1", "k0v4", "k8v4v4", "k16v16", "K8V4"] {
        let refused = wrong.parse::<Preset>().unwrap_err().to_string();
        assert!(refused.contains("kNvM (such as k8v4) with 2, 3, 4, 6 or 8 bits"), "{refused}");
    }
}

#[test]
fn bits_are_those_with_kernels() {
    let pair = |text| average_bits(text).map(|w| (w.keys.bits(), w.values.bits())).ok();
    assert_eq!(pair("3.5"), Some((3, 4)));
    assert_eq!(pair("4"), Some((4, 4)));
    assert_eq!(pair("2.5"), Some((2, 3)));
    for wrong in ["4.5", "5", "7", "1", "9", "0", "nan", "x", "3.25"] {
        assert_eq!(pair(wrong), None, "{wrong}");
    }
    assert_eq!(bits(0), Ok(None));
    for (count, served) in [(1, false), (2, true), (5, false), (6, true), (8, true), (9, false)] {
        assert_eq!(bits(count).is_ok(), served, "{count}");
    }
}
