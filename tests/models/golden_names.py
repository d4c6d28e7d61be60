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
    "faster_rcnn_resnet18": """
        roi_boxes roi_scores rpn_boxes rpn_conv rpn_scores stage1_block1_conv1
        stage1_block1_conv2 stage1_block2_conv1 stage1_block2_conv2 stage2_block1_conv1
        stage2_block1_conv2 stage2_block1_shortcut stage2_block2_conv1
        stage2_block2_conv2 stage3_block1_conv1 stage3_block1_conv2
        stage3_block1_shortcut stage3_block2_conv1 stage3_block2_conv2
        stage4_block1_conv1 stage4_block1_conv2 stage4_block1_shortcut
        stage4_block2_conv1 stage4_block2_conv2 stem_conv
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
    "ssd300_vgg16": """
        boxes0 boxes1 boxes2 boxes3 boxes4 boxes5 extra1_conv1 extra1_conv2 extra2_conv1
        extra2_conv2 extra3_conv1 extra3_conv2 extra4_conv1 extra4_conv2 head_fc1
        head_fc2 scores0 scores1 scores2 scores3 scores4 scores5 stage1_conv1
        stage1_conv2 stage2_conv1 stage2_conv2 stage3_conv1 stage3_conv2 stage3_conv3
        stage4_conv1 stage4_conv2 stage4_conv3 stage5_conv1 stage5_conv2 stage5_conv3
    """,
    "ssd_mobilenet_v2": """
        boxes0 boxes0_depthwise boxes1 boxes1_depthwise boxes2 boxes2_depthwise boxes3
        boxes3_depthwise boxes4 boxes4_depthwise boxes5 boxes5_depthwise extra1_conv1
        extra1_conv2 extra1_depthwise extra2_conv1 extra2_conv2 extra2_depthwise
        extra3_conv1 extra3_conv2 extra3_depthwise extra4_conv1 extra4_conv2
        extra4_depthwise head_conv scores0 scores0_depthwise scores1 scores1_depthwise
        scores2 scores2_depthwise scores3 scores3_depthwise scores4 scores4_depthwise
        scores5 scores5_depthwise stage1_block1_depthwise stage1_block1_project
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
        stage7_block1_depthwise stage7_block1_expand stage7_block1_project stem_conv
    """,
    "ssd_resnet20": """
        boxes0 boxes1 boxes2 boxes3 extra1_conv1 extra1_conv2 extra2_conv1 extra2_conv2
        scores0 scores1 scores2 scores3 stage1_block1_conv1 stage1_block1_conv2
        stage1_block2_conv1 stage1_block2_conv2 stage1_block3_conv1 stage1_block3_conv2
        stage2_block1_conv1 stage2_block1_conv2 stage2_block1_shortcut
        stage2_block2_conv1 stage2_block2_conv2 stage2_block3_conv1 stage2_block3_conv2
        stage3_block1_conv1 stage3_block1_conv2 stage3_block1_shortcut
        stage3_block2_conv1 stage3_block2_conv2 stage3_block3_conv1 stage3_block3_conv2
        stem_conv
    """,
    "ssd_resnet8": """
        boxes0 boxes1 boxes2 boxes3 extra1_conv1 extra1_conv2 extra2_conv1 extra2_conv2
        scores0 scores1 scores2 scores3 stage1_block1_conv1 stage1_block1_conv2
        stage2_block1_conv1 stage2_block1_conv2 stage2_block1_shortcut
        stage3_block1_conv1 stage3_block1_conv2 stage3_block1_shortcut stem_conv
    """,
    "vgg16": """
        head_dense head_fc1 head_fc2 stage1_conv1 stage1_conv2 stage2_conv1
        stage2_conv2 stage3_conv1 stage3_conv2 stage3_conv3 stage4_conv1
        stage4_conv2 stage4_conv3 stage5_conv1 stage5_conv2 stage5_conv3
    """,
}
