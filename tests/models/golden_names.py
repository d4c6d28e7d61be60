"""Names of the layers that policies name, frozen: policies on disk depend on them."""

NAMES = {
    "digits_cnn": """
        head_dense stage1_conv1 stage1_conv2 stage2_depthwise stage2_pointwise
        stage3_conv stem_conv
    """,
    "digits_mobilenet": """
        block1_depthwise block1_expand block1_project block2_depthwise block2_expand
        block2_project block3_depthwise block3_expand block3_project head_dense
        stem_conv
    """,
    "mobilenet_v2": """
        head_conv head_dense stage1_block1_depthwise stage1_block1_project
        stage2_block1_depthwise stage2_block1_expand stage2_block1_project
        stage2_block2_depthwise stage2_block2_expand stage2_block2_project
        stage3_block1_depthwise stage3_block1_expand stage3_block1_project
        stage3_block2_depthwise stage3_block2_expand stage3_block2_project
        stage3_block3_depthwise stage3_block3_expand stage3_block3_project
        stage4_block1_depthwise stage4_block1_expand stage4_block1_project
        stage4_block2_depthwise stage4_block2_expand stage4_block2_project
        stage4_block3_depthwise stage4_block3_expand stage4_block3_project
        stage4_block4_depthwise stage4_block4_expand stage4_block4_project
        stage5_block1_depthwise stage5_block1_expand stage5_block1_project
        stage5_block2_depthwise stage5_block2_expand stage5_block2_project
        stage5_block3_depthwise stage5_block3_expand stage5_block3_project
        stage6_block1_depthwise stage6_block1_expand stage6_block1_project
        stage6_block2_depthwise stage6_block2_expand stage6_block2_project
        stage6_block3_depthwise stage6_block3_expand stage6_block3_project
        stage7_block1_depthwise stage7_block1_expand stage7_block1_project
        stem_conv
    """,
    "resnet8": """
        head_dense stage1_block1_conv1 stage1_block1_conv2 stage2_block1_conv1
        stage2_block1_conv2 stage2_block1_shortcut stage3_block1_conv1
        stage3_block1_conv2 stage3_block1_shortcut stem_conv
    """,
    "resnet18": """
        head_dense stage1_block1_conv1 stage1_block1_conv2 stage1_block2_conv1
        stage1_block2_conv2 stage2_block1_conv1 stage2_block1_conv2
        stage2_block1_shortcut stage2_block2_conv1 stage2_block2_conv2
        stage3_block1_conv1 stage3_block1_conv2 stage3_block1_shortcut
        stage3_block2_conv1 stage3_block2_conv2 stage4_block1_conv1
        stage4_block1_conv2 stage4_block1_shortcut stage4_block2_conv1
        stage4_block2_conv2 stem_conv
    """,
    "resnet20": """
        head_dense stage1_block1_conv1 stage1_block1_conv2 stage1_block2_conv1
        stage1_block2_conv2 stage1_block3_conv1 stage1_block3_conv2
        stage2_block1_conv1 stage2_block1_conv2 stage2_block1_shortcut
        stage2_block2_conv1 stage2_block2_conv2 stage2_block3_conv1
        stage2_block3_conv2 stage3_block1_conv1 stage3_block1_conv2
        stage3_block1_shortcut stage3_block2_conv1 stage3_block2_conv2
        stage3_block3_conv1 stage3_block3_conv2 stem_conv
    """,
    "resnet50": """
        head_dense stage1_block1_conv1 stage1_block1_conv2 stage1_block1_conv3
        stage1_block1_shortcut stage1_block2_conv1 stage1_block2_conv2
        stage1_block2_conv3 stage1_block3_conv1 stage1_block3_conv2
        stage1_block3_conv3 stage2_block1_conv1 stage2_block1_conv2
        stage2_block1_conv3 stage2_block1_shortcut stage2_block2_conv1
        stage2_block2_conv2 stage2_block2_conv3 stage2_block3_conv1
        stage2_block3_conv2 stage2_block3_conv3 stage2_block4_conv1
        stage2_block4_conv2 stage2_block4_conv3 stage3_block1_conv1
        stage3_block1_conv2 stage3_block1_conv3 stage3_block1_shortcut
        stage3_block2_conv1 stage3_block2_conv2 stage3_block2_conv3
        stage3_block3_conv1 stage3_block3_conv2 stage3_block3_conv3
        stage3_block4_conv1 stage3_block4_conv2 stage3_block4_conv3
        stage3_block5_conv1 stage3_block5_conv2 stage3_block5_conv3
        stage3_block6_conv1 stage3_block6_conv2 stage3_block6_conv3
        stage4_block1_conv1 stage4_block1_conv2 stage4_block1_conv3
        stage4_block1_shortcut stage4_block2_conv1 stage4_block2_conv2
        stage4_block2_conv3 stage4_block3_conv1 stage4_block3_conv2
        stage4_block3_conv3 stem_conv
    """,
    "resnet50_v1_5": """
        head_dense stage1_block1_conv1 stage1_block1_conv2 stage1_block1_conv3
        stage1_block1_shortcut stage1_block2_conv1 stage1_block2_conv2
        stage1_block2_conv3 stage1_block3_conv1 stage1_block3_conv2
        stage1_block3_conv3 stage2_block1_conv1 stage2_block1_conv2
        stage2_block1_conv3 stage2_block1_shortcut stage2_block2_conv1
        stage2_block2_conv2 stage2_block2_conv3 stage2_block3_conv1
        stage2_block3_conv2 stage2_block3_conv3 stage2_block4_conv1
        stage2_block4_conv2 stage2_block4_conv3 stage3_block1_conv1
        stage3_block1_conv2 stage3_block1_conv3 stage3_block1_shortcut
        stage3_block2_conv1 stage3_block2_conv2 stage3_block2_conv3
        stage3_block3_conv1 stage3_block3_conv2 stage3_block3_conv3
        stage3_block4_conv1 stage3_block4_conv2 stage3_block4_conv3
        stage3_block5_conv1 stage3_block5_conv2 stage3_block5_conv3
        stage3_block6_conv1 stage3_block6_conv2 stage3_block6_conv3
        stage4_block1_conv1 stage4_block1_conv2 stage4_block1_conv3
        stage4_block1_shortcut stage4_block2_conv1 stage4_block2_conv2
        stage4_block2_conv3 stage4_block3_conv1 stage4_block3_conv2
        stage4_block3_conv3 stem_conv
    """,
    "resnet56": """
        head_dense stage1_block1_conv1 stage1_block1_conv2 stage1_block2_conv1
        stage1_block2_conv2 stage1_block3_conv1 stage1_block3_conv2
        stage1_block4_conv1 stage1_block4_conv2 stage1_block5_conv1
        stage1_block5_conv2 stage1_block6_conv1 stage1_block6_conv2
        stage1_block7_conv1 stage1_block7_conv2 stage1_block8_conv1
        stage1_block8_conv2 stage1_block9_conv1 stage1_block9_conv2
        stage2_block1_conv1 stage2_block1_conv2 stage2_block1_shortcut
        stage2_block2_conv1 stage2_block2_conv2 stage2_block3_conv1
        stage2_block3_conv2 stage2_block4_conv1 stage2_block4_conv2
        stage2_block5_conv1 stage2_block5_conv2 stage2_block6_conv1
        stage2_block6_conv2 stage2_block7_conv1 stage2_block7_conv2
        stage2_block8_conv1 stage2_block8_conv2 stage2_block9_conv1
        stage2_block9_conv2 stage3_block1_conv1 stage3_block1_conv2
        stage3_block1_shortcut stage3_block2_conv1 stage3_block2_conv2
        stage3_block3_conv1 stage3_block3_conv2 stage3_block4_conv1
        stage3_block4_conv2 stage3_block5_conv1 stage3_block5_conv2
        stage3_block6_conv1 stage3_block6_conv2 stage3_block7_conv1
        stage3_block7_conv2 stage3_block8_conv1 stage3_block8_conv2
        stage3_block9_conv1 stage3_block9_conv2 stem_conv
    """,
    "vgg16": """
        head_dense head_fc1 head_fc2 stage1_conv1 stage1_conv2 stage2_conv1
        stage2_conv2 stage3_conv1 stage3_conv2 stage3_conv3 stage4_conv1
        stage4_conv2 stage4_conv3 stage5_conv1 stage5_conv2 stage5_conv3
    """,
}
